"""How much of everything the recipe makes, draws and trains."""

from __future__ import annotations

from dataclasses import dataclass

PRICED = 16  # questions of the budget head for each step of the policy


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    easy: int  # simulated images on synthetic anatomy, for the encoder
    scenes: int  # simulated images of every kind, for the encoder; as many others for the language stream
    volumes: int
    pairs: int  # of a prior and a current image; the encoder does not see them
    rl_scenes: int  # further images, unseen by the language stream, that the policy learns on
    rl_volumes: int
    rl_pairs: int
    encoder_easy: int  # steps on easy images
    encoder_all: int  # steps on all of them
    encoder_varied: int  # steps on them with anatomy that looks as if taken otherwise
    encoder_batch: int
    glance_steps: int
    language_steps: int
    language_tokens: int  # in a batch
    warm_steps: int  # in which the policy learns which finding a question means
    policy_steps: int
    policy_batch: int
    looks: int  # questions for which the language stream then sees what the policy keeps
    looked_steps: int
    turns: int  # times that both streams learn by reinforcement, in turns
    turn_steps: tuple[int, int]  # of the visual and of the language stream
    test_scenes: int  # about four questions each


SIZES = {
    "full": Size(
        easy=6_000,
        scenes=20_000,
        volumes=400,
        pairs=1_500,
        rl_scenes=1_200,
        rl_volumes=120,
        rl_pairs=200,
        encoder_easy=300,
        encoder_all=3_000,
        encoder_varied=1_500,
        encoder_batch=64,
        glance_steps=2_000,
        language_steps=3_500,
        language_tokens=9_000,
        warm_steps=600,
        policy_steps=100,
        policy_batch=32,
        looks=60_000,
        looked_steps=800,
        turns=0,
        turn_steps=(150, 60),
        test_scenes=300,
    ),
    "small": Size(
        easy=3_000,
        scenes=3_000,
        volumes=50,
        pairs=200,
        rl_scenes=600,
        rl_volumes=8,
        rl_pairs=40,
        encoder_easy=250,
        encoder_all=250,
        encoder_varied=80,
        encoder_batch=64,
        glance_steps=200,
        language_steps=450,
        language_tokens=5_000,
        warm_steps=150,
        policy_steps=80,
        policy_batch=16,
        looks=4_000,
        looked_steps=150,
        turns=1,
        turn_steps=(20, 10),
        test_scenes=100,
    ),
    "tiny": Size(  # for tests: runs everything, learns nothing
        easy=30,
        scenes=30,
        volumes=4,
        pairs=4,
        rl_scenes=10,
        rl_volumes=2,
        rl_pairs=4,
        encoder_easy=3,
        encoder_all=3,
        encoder_varied=3,
        encoder_batch=8,
        glance_steps=3,
        language_steps=6,
        language_tokens=600,
        warm_steps=3,
        policy_steps=2,
        policy_batch=4,
        looks=8,
        looked_steps=2,
        turns=1,
        turn_steps=(1, 1),
        test_scenes=3,
    ),
}
