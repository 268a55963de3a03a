"""How fast episodes can be looked at: `python benchmarks/episodes.py [SEEKS]`. Limit: a median of 100 ms from asking to both pictures.

A recording of two cameras, 480 x 640, 30 fps, h264 is made. Seeks go to random frames of random episodes of it; playing goes through the
window's own viewer, without a screen, for as long as an episode lasts. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MS = 100.0
FPS, LENGTHS, CAMERAS = 30, (150, 300, 150), ("top", "wrist")


def write_video(path: Path, seed: int) -> None:
    """Moving shapes over noise: neither flat, which would be quicker than any camera, nor noise alone, which none sees."""
    import av
    import numpy as np

    path.parent.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    ground = draw.integers(60, 120, (480, 640, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number in range(sum(LENGTHS)):
            picture = np.roll(ground, number // 4, axis=1)
            left = 3 * number % 540
            picture[180:300, left : left + 100] = (number % 256, 200, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))


def make(folder: Path) -> None:
    """A v3.0 recording of three episodes in one file a camera."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = [f"observation.images.{name}" for name in CAMERAS]
    features: dict[str, object] = {
        key: {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]} for key in keys
    }
    features |= {key: {"dtype": "float32", "shape": [6], "names": None} for key in ("observation.state", "action")}
    total = sum(LENGTHS)
    info = {"codebase_version": "v3.0", "fps": FPS, "total_episodes": len(LENGTHS), "total_frames": total, "features": features}
    for place in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / place).mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    ends = np.cumsum(LENGTHS)
    starts = ends - LENGTHS
    listed = {"episode_index": np.arange(len(LENGTHS)), "length": np.array(LENGTHS)}
    listed |= {"dataset_from_index": starts, "dataset_to_index": ends}
    for key in keys:
        listed |= {f"videos/{key}/{part}_index": np.zeros(len(LENGTHS), np.int64) for part in ("chunk", "file")}
        listed |= {f"videos/{key}/from_timestamp": starts / FPS, f"videos/{key}/to_timestamp": ends / FPS}
    pq.write_table(pa.table(listed), folder / "meta/episodes/chunk-000/file-000.parquet")
    values = np.cumsum(np.random.default_rng(0).normal(size=(total, 6)), axis=0, dtype=np.float32)
    wide = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    table = {"observation.state": wide, "action": wide, "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS)}
    pq.write_table(pa.table(table), folder / "data/chunk-000/file-000.parquet")
    for seed, key in enumerate(keys):
        write_video(folder / f"videos/{key}/chunk-000/file-000.mp4", seed)


def seek_ms(folder: Path, seeks: int) -> list[float]:
    """Milliseconds from asking for a random frame to the pictures of both cameras, in an episode whose videos are open."""
    from zk0desk.training.episode_frames import EpisodeFrames, list_episodes

    listed, draw, taken = list_episodes(folder), random.Random(0), []
    for episode in listed.episodes:
        frames = EpisodeFrames(folder, episode, listed.info)
        for camera in frames.cameras:
            frames.picture(camera, 0)
        for _ in range(seeks // len(listed.episodes)):
            frame = draw.randrange(episode.length)
            began = time.perf_counter()
            for camera in frames.cameras:
                frames.picture(camera, frame)
            taken.append(1000 * (time.perf_counter() - began))
        frames.close()
    return taken


def play(folder: Path) -> dict[str, float]:
    """Pictures a second that the viewer showed of its longest episode, and the longest that its event loop did not turn (ms)."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtCore import QEventLoop, QTimer
    from PySide6.QtWidgets import QApplication

    from zk0desk.ui import theme
    from zk0desk.ui.episode_viewer import EpisodeViewer

    app = QApplication.instance() or QApplication([])
    assert isinstance(app, QApplication)
    theme.apply(app, "light")
    viewer = EpisodeViewer(folder, (), (), lambda **_: None)
    viewer.show()

    def wait(ms: int) -> None:
        loop = QEventLoop()
        QTimer.singleShot(ms, loop.quit)
        loop.exec()

    while viewer.listing is None:
        wait(20)
    viewer.go_to(LENGTHS.index(max(LENGTHS)))
    wait(1500)
    shown: list[float] = []
    viewer.player.shot.connect(lambda _shot: shown.append(time.perf_counter()))
    turns: list[float] = []
    beat = QTimer()
    beat.timeout.connect(lambda: turns.append(time.perf_counter()))
    beat.start(5)
    viewer.toggle()
    while viewer.playing:
        wait(20)
    wait(200)
    beat.stop()
    viewer.close()
    longest = max(after - before for before, after in zip(turns, turns[1:], strict=False))
    return {"played-fps": (len(shown) - 1) / (shown[-1] - shown[0]), "longest-hold-ms": 1000 * longest, "shown-frames": len(shown)}


def main(seeks: int = 90) -> int:
    """Measure and print; 0 when the median seek is within the limit."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "recording"
        make(folder)
        taken = seek_ms(folder, seeks)
        played = play(folder)
    median = statistics.median(taken)
    result = {
        "benchmark": "episodes", "median-seek-ms": median, "worst-seek-ms": max(taken), "limit-ms": LIMIT_MS, "recorded-fps": FPS,
        **played, "episode-frames": max(LENGTHS), "processors": os.cpu_count(), "ok": median < LIMIT_MS,
    }  # fmt: skip
    print(f"seek: median {median:.1f} ms, worst {max(taken):.1f} ms of {len(taken)}; limit {LIMIT_MS:g} ms")
    print(f"playing: {played['played-fps']:.1f} of {FPS} fps; the window was held for {played['longest-hold-ms']:.0f} ms at most")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(*[int(argument) for argument in sys.argv[1:2]]))
