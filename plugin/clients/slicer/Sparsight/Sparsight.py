"""sparsight in 3D Slicer: ask about an image, see what the answer rests on, review it. docs/clients.md.

The widget is thin: in SparsightLib, logic changes the scene, client talks to the server, words says it. Threads do
nothing but talk to the server; all else happens in the window's thread.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import ctk  # noqa: F401  (the .ui file needs its widgets)
import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from SparsightLib import volumes, words
from SparsightLib.client import Client, may
from SparsightLib.learning import LearningPanel, fill
from SparsightLib.logic import SparsightLogic
from SparsightLib.review import ReviewPanel
from SparsightLib.stream import Heard
from SparsightLib.tasks import Tasks
from SparsightLib.wire import CancelledError, ClientError

_TICK_MS = 30
_SLOWLY = 10  # ticks between two looks at what changes by itself


class Sparsight(ScriptedLoadableModule):
    """What Slicer's list of modules shows."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Sparsight"
        parent.categories = ["Active Learning"]
        parent.contributors = ["The sparsight authors"]
        parent.helpText = (
            "Ask a question about an image; the answer comes with the few regions it rests on. Accept, amend or reject "
            f"it, and mark what mattered: the model learns from that. {words.RESEARCH} Nothing is sent but to the "
            "server that you name, and no image before you agree."
        )
        parent.acknowledgementText = "Apache-2.0"


class SparsightWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    # --- Slicer's side ---

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/Sparsight.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = SparsightLogic(slicer.mrmlScene)
        self._tasks, self._task, self._doing, self._since_s = Tasks(), None, "", 0.0
        self._region, self._ticks = 0, 0
        self._heard = None  # of the question that is being answered
        self._me = {"reviewer": None, "role": None}  # until the server says who logged in
        self._studies, self._earlier, self._suggestions, self._offered = [], [], [], []
        self._learning = LearningPanel(self.ui, self._start, self._beside, self._say)
        self._review = ReviewPanel(self.ui, self.logic, self._start, self._guarded, self._say)
        self.ui.researchLabel.text = words.RESEARCH
        self._read_settings()
        self._connect()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self._scene_closed)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self._scene_changed)
        self._timer = qt.QTimer()
        self._timer.setInterval(_TICK_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()
        self._scene_changed()

    def cleanup(self) -> None:
        """Stop waiting; the draft is in the scene."""
        self._timer.stop()
        self._stop()
        self.removeObservers()

    def _connect(self) -> None:
        clicked = {
            "caFile": self._choose_ca_file,
            "connect": self._refresh,
            "refresh": self._refresh,
            "load": self._load,
            "next": self._next_case,
            "question": self.ui.questionEdit.setFocus,
            "ask": self._ask,
            "cancel": self._stop,
            "previous": lambda: self._look(-1),
            "following": lambda: self._look(1),
            "evidence": lambda: self.logic.show_or_hide(self.ui.evidenceButton.checked),
            "picture": self._save_picture,
        }
        for name, action in clicked.items():
            getattr(self.ui, f"{name}Button").connect("clicked()", action)
        self.ui.suggestionBox.connect("activated(int)", self._take_suggestion)
        self.ui.earlierBox.connect("activated(int)", self._show_earlier)
        self.ui.questionEdit.connect("textChanged()", self._write_question)
        for name in ("urlEdit", "caFileEdit", "reviewerEdit"):
            getattr(self.ui, name).connect("editingFinished()", self._save_settings)
        self.ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _: self._enable())

    def _read_settings(self) -> None:
        """The token is in no settings: it comes from SPARSIGHT_TOKEN, or is typed anew."""
        settings = qt.QSettings()
        self.ui.urlEdit.text = settings.value("Sparsight/url", "http://127.0.0.1:8000")
        self.ui.caFileEdit.text = settings.value("Sparsight/caFile", "")
        self.ui.reviewerEdit.text = settings.value("Sparsight/reviewer", "slicer")
        self.ui.tokenEdit.text = os.environ.get("SPARSIGHT_TOKEN", "")

    def _save_settings(self) -> None:
        settings = qt.QSettings()
        settings.setValue("Sparsight/url", self.ui.urlEdit.text)
        settings.setValue("Sparsight/caFile", self.ui.caFileEdit.text)
        settings.setValue("Sparsight/reviewer", self.ui.reviewerEdit.text)

    def _choose_ca_file(self) -> None:
        path = qt.QFileDialog.getOpenFileName(None, "Certificates", self.ui.caFileEdit.text, "PEM (*.pem *.crt *.cer)")
        if path:
            self.ui.caFileEdit.text = path
            self._save_settings()

    def _scene_closed(self, *_) -> None:
        self._stop()
        self._scene_changed()

    def _scene_changed(self, *_) -> None:
        """Show what the scene holds: nothing, or the work of a scene that was loaded."""
        self.ui.questionEdit.plainText = self.logic.question
        if self.logic.volume is not None:
            self.ui.volumeSelector.setCurrentNode(self.logic.volume)
        self._show_answer()

    # --- waiting ---

    def _client(self) -> Client:
        """Raises ClientError where an entry cannot be used."""
        token, ca_file = self.ui.tokenEdit.text.strip(), self.ui.caFileEdit.text.strip()
        return Client(self.ui.urlEdit.text, token=token, ca_file=ca_file)

    def _beside(self, work, done):
        """Do work(client, cancel) in a thread, then done(result) here."""
        try:
            client = self._client()
        except ClientError as error:
            self._failed(error)
            return None
        return self._tasks.start(lambda cancel: work(client, cancel), done, self._failed)

    def _start(self, doing: str, work, done) -> None:
        """The same, where one thing is done at a time, and can be cancelled."""
        self._doing, self._since_s = doing, time.monotonic()
        self._say(doing)
        self._task = self._beside(work, done)
        self._enable()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.stop()

    def _tick(self) -> None:
        """Hand over what is finished; now and then, say what goes on."""
        self._tasks.deliver()
        if self._task is not None and self._task.over:
            self._task = None
            self._enable()
        self._ticks += 1
        if self._ticks % _SLOWLY:
            return
        if self._task is not None:
            self._say(f"{self._doing}, {time.monotonic() - self._since_s:.0f} s")
        self._review.tick()
        self._learning.tick()

    def _failed(self, error: Exception) -> None:
        if self._heard is not None:  # half an answer does not stay
            self._show_said()
        if isinstance(error, CancelledError):
            self._say("Cancelled.")
        elif isinstance(error, ClientError):
            self._say(words.error(error.given, error.expected, error.todo), bad=True)
        else:
            logging.error("sparsight", exc_info=error)
            self._say(f"A defect of this module ({type(error).__name__}): see the error log.", bad=True)

    def _guarded(self, action) -> None:
        """Do what may fail outside of a thread."""
        try:
            action()
        except ClientError as error:
            self._failed(error)

    def _say(self, text: str, bad: bool = False) -> None:
        self.ui.statusLabel.text = text
        self.ui.statusLabel.styleSheet = "color: #c0392b" if bad else ""

    def _enable(self) -> None:
        """What can be done now."""
        busy, answered = self._task is not None and not self._task.over, self.logic.answer is not None
        can = dict.fromkeys(("connect", "refresh", "load", "next"), not busy)
        can.update(dict.fromkeys(("learn", "promote", "rollback"), not busy and may(self._me, "trainer")))
        can.update(dict.fromkeys(("previous", "following", "evidence"), self.logic.has_evidence))
        can.update(
            cancel=busy,
            picture=answered and not busy,
            ask=not busy and self.ui.volumeSelector.currentNode() is not None,
        )
        for name, possible in can.items():
            getattr(self.ui, f"{name}Button").enabled = possible
        self._review.enable(busy, may(self._me, "reviewer"))

    # --- the server's lists, and studies ---

    def _refresh(self) -> None:
        def work(client, cancel):
            me = client.me(cancel)
            job = client.learning(cancel) if may(me, "trainer") else None
            return client.ready(cancel), me, client.studies(cancel), job, client.policies(cancel)

        self._start("Connecting", work, self._show_lists)

    def _show_lists(self, found) -> None:
        state, me, self._studies, job, policies = found
        self._take_login(me)
        self._learning.show(job, policies)
        fill(self.ui.studyBox, [f"{study['modality']}  {study['id']}" for study in self._studies])
        self._suggest()
        login = f" as {me['role']}" if me["role"] else ""
        what = f"reader {state['reader']}, policy {state['policy']}, {state['corrections']} corrections"
        self._say(f"Connected{login}: {what}.")

    def _take_login(self, me) -> None:
        """Who asks, as the server knows them: what it would refuse them is not offered."""
        self._me, known = me, me["reviewer"]
        if known:  # another's is refused
            self.ui.reviewerEdit.text = known
        self.ui.reviewerEdit.enabled = not known
        self._enable()

    def _suggest(self) -> None:
        questions = [one["question"] for one in (*self._studies, *self._earlier)]
        self._suggestions = list(dict.fromkeys(questions))
        fill(self.ui.suggestionBox, self._suggestions)

    def _take_suggestion(self, index: int) -> None:
        self.ui.questionEdit.plainText = self._suggestions[index]

    def _write_question(self) -> None:
        self.logic.question = self.ui.questionEdit.plainText

    def _load(self) -> None:
        if self._studies:
            self._open(self._studies[self.ui.studyBox.currentIndex]["id"], "")

    def _next_case(self) -> None:
        """One that was offered in this session is passed over, so that it can be skipped, until all were."""
        offered = list(self._offered)

        def done(case) -> None:
            if case["study"] is None:
                self._offered.clear()
                self._say("No other study: every one was corrected, or offered already.")
            else:
                self._offered.append(case["study"])
                self._open(case["study"], case["question"], f"Next: {case['reason']}")

        self._start("Looking for the case that would teach most", lambda c, cancel: c.next_case(offered, cancel), done)

    def _open(self, study: str, question: str, why: str = "Loaded.") -> None:
        """Show a study of the server, from the scene if it is there."""

        def done(volume) -> None:
            self.ui.volumeSelector.setCurrentNode(volume)
            slicer.util.setSliceViewerLayers(background=volume, fit=True)
            if question:
                self.ui.questionEdit.plainText = question
            self._say(why)

        def read(path: str):
            return slicer.util.loadVolume(path, {"singleFile": True})

        def loaded(got) -> None:
            self._guarded(lambda: done(volumes.load(slicer.mrmlScene, *got, study, read)))

        here = volumes.find(slicer.mrmlScene, study)
        if here is not None:
            done(here)
        else:
            self._start("Loading the study", lambda client, cancel: client.download(study, cancel), loaded)

    # --- asking ---

    def _ask(self) -> None:
        volume, question = self.ui.volumeSelector.currentNode(), self.ui.questionEdit.plainText.strip()
        if volume is None or volume.GetImageData() is None or not question:
            self._say("Choose a volume and write a question first.", bad=True)
        elif self._review.may_be_lost():
            request = {"question": question, "recheck": self.ui.recheckBox.checked}
            if self.ui.budgetBox.value:
                request["budget"] = self.ui.budgetBox.value / 100
            ids = volumes.studies_of(slicer.mrmlScene, volume) or [volumes.upload_id(volume)]
            self._ask_as(volume, ids, request)

    def _ask_as(self, volume, ids, request) -> None:
        """Ask under the first of these ids that the server knows; offer to send the image where it knows none."""
        hear = self._listen(request)

        def done(answer) -> None:
            own = volumes.upload_id(volume) if answer is None else ""
            if answer is not None:
                self._take_answer(answer, volume)
            elif own not in ids:
                self._ask_as(volume, [own], request)
            else:
                self._start("Looking for the study", lambda c, cancel: c.me(cancel), lambda me: offer(own, me))

        def offer(own, me) -> None:
            self._take_login(me)
            if may(me, "admin"):
                self._offer(volume, own, request)
            else:
                self._say(f"The server does not have this image; as {me['role']} you may not add one.", bad=True)

        self._start("Looking at the study", lambda c, cancel: c.ask_any(ids, request, cancel, hear), done)

    def _listen(self, request):
        """What a question's thread calls with each event: it is shown here, unless another one was asked since."""
        heard = self._heard = Heard(request["question"])

        def show(name, data) -> None:
            if heard is self._heard:
                heard.take(name, data)
                self._doing = words.stage(heard.stage).capitalize()
                self.ui.answerView.html = words.heard_html(heard)

        return lambda name, data: self._tasks.hand_over(lambda: show(name, data))

    def _offer(self, volume, study: str, request) -> None:
        size_mb = volume.GetImageData().GetActualMemorySize() / 1024
        offer = (
            f"The server does not have this image. Send it ({size_mb:.0f} MB before compression) to "
            f"{self.ui.urlEdit.text}? Its voxels and its geometry are sent, no name and no other DICOM attribute, and "
            "the server keeps them."
        )
        if not slicer.util.confirmYesNoDisplay(offer, windowTitle="Send the image?"):
            self._say("Not sent.")
            return

        def send() -> None:
            image, hear = volumes.image_nrrd(volume), self._listen(request)

            def work(client, cancel):
                return client.ask({**request, "study": client.upload(study, image, cancel)}, cancel, hear)

            self._start("Sending the image", work, lambda answer: self._take_answer(answer, volume))

        self._guarded(send)

    def _take_answer(self, answer, volume) -> None:
        """Show the answer at once; what it rests on, and the earlier answers, follow."""
        if not slicer.mrmlScene.IsNodePresent(volume):
            self._show_said()
            self._say("Answered, but the volume is no longer in the scene.", bad=True)
            return
        self.logic.show(answer, volume)
        self._show_answer()
        episode, study = answer["episode"], answer["study"]

        def work(client, cancel):
            evidence = client.geometry(episode, cancel), client.labelmap(episode, cancel)
            earlier = client.episodes(study, cancel=cancel)
            earlier = [one for one in earlier if not one.get("prior")]  # of two images, the page shows both
            me = client.me(cancel)
            return (*evidence, earlier, me, client.given(episode, cancel) if may(me, "reviewer") else [])

        def done(found) -> None:
            place, labelmap, self._earlier, me, given = found
            self._take_login(me)
            fill(self.ui.earlierBox, [words.earlier(one) for one in self._earlier])
            self._suggest()
            if (self.logic.answer or {}).get("episode") == episode:
                self._review.show_given(given)
                self._guarded(lambda: self._show_evidence(place, labelmap))

        self._start("Answered. Fetching the evidence", work, done)

    def _show_evidence(self, place, labelmap: bytes) -> None:
        fits = self.logic.show_evidence(place, labelmap)
        self._region = 0
        self.ui.evidenceButton.checked = True
        self._enable()
        if fits:
            self._say("Answered.")
        else:
            elsewhere = "The server's image does not lie where this volume does: do not trust the regions shown."
            self._say(elsewhere, bad=True)

    def _show_earlier(self, index: int) -> None:
        answer = self._earlier[index]
        volume = volumes.find(slicer.mrmlScene, answer["study"]) or self.ui.volumeSelector.currentNode()
        if volume is not None and self._review.may_be_lost():
            self._take_answer(answer, volume)

    def _show_answer(self) -> None:
        """Answer and draft as the scene has them."""
        self._show_said()
        self._review.show()
        self._enable()

    def _show_said(self) -> None:
        self._heard, answer = None, self.logic.answer
        self.ui.answerView.html = words.answer_html(answer) if answer else ""

    def _look(self, step: int) -> None:
        self._region = self.logic.look_at(self._region + step)

    def _save_picture(self) -> None:
        path = qt.QFileDialog.getSaveFileName(None, "Save picture", "evidence.png", "PNG (*.png)")
        episode = self.logic.answer["episode"]

        def done(picture: bytes) -> None:
            try:
                Path(path).write_bytes(picture)
            except OSError as error:
                self._say(f"The picture was not saved: {error.strerror}.", bad=True)
            else:
                self._say("Picture saved.")

        if path:
            self._start("Fetching the picture", lambda client, cancel: client.picture(episode, cancel), done)
