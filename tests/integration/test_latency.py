"""The server stays responsive while a question is being answered."""

import threading
import time

import nibabel
import numpy as np
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def large_study(server):
    """A volume that takes seconds to encode."""
    path = server.folder / "large.nii.gz"
    voxels = np.random.default_rng(1).integers(-100, 400, (192, 192, 160), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 2, 1])), path)
    yield "large"
    path.unlink()


def test_info_answers_while_a_question_is_answered(client, server, large_study):
    def timed():
        start = time.perf_counter()
        assert client.get("/info/").status_code == 200
        return time.perf_counter() - start

    idle = [timed() for _ in range(20)]
    answer = {}

    def ask():
        with server.client(300) as own:
            start = time.perf_counter()
            answer["reply"] = own.post("/sparsight/ask", json={"study": large_study, "question": "Is there a nodule?"})
            answer["seconds"] = time.perf_counter() - start

    thread = threading.Thread(target=ask)
    thread.start()
    busy = []
    while thread.is_alive():
        busy.append(timed())
        time.sleep(0.01)
    thread.join()
    assert answer["reply"].status_code == 200, answer["reply"].text
    assert len(busy) >= 20, "the answer came too fast to measure beside it"
    median, p95, p99 = (float(np.quantile(busy, q)) for q in (0.5, 0.95, 0.99))
    print(f"/info/ idle: median {1000 * np.median(idle):.1f} ms; busy for {answer['seconds']:.1f} s, ", end="")
    print(f"n {len(busy)}: median {1000 * median:.1f}, p95 {1000 * p95:.1f}, p99 {1000 * p99:.1f} ms")
    # stock waits for the whole answer; on a crowded machine single replies may be late, most may not
    assert median < 0.05
    assert p95 < max(0.1, 0.1 * answer["seconds"])
    assert p99 < max(0.5, 0.25 * answer["seconds"])
