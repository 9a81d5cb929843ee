"""Which label belongs to which encoder frame: one rule for MFCC labels and for existing label files of any rate.

A frame takes the label whose window is centred nearest to the centre of the frame's receptive field in the front-end;
of two labels that are equally near it takes the earlier one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from upstreams.config import HOP, SAMPLE_RATE, WINDOW, FrontEndConfig
from upstreams.frontend import receptive_field_centre

MFCC_RATE = SAMPLE_RATE / HOP  # Hz


def nearest_labels(frames: int, hop: int, centre: float, label_rate: float) -> NDArray[np.int64]:
    """Return the index of the label of each frame, (frames,); it may lie beyond the utterance's last label.

    hop: samples of an encoder frame; centre: sample at the centre of frame 0's receptive field. label_rate: Hz. Label 0
    belongs to the first 25 ms, as in Kaldi's MFCC (100 Hz) and HuBERT's convolutions (50 Hz).
    """
    samples = centre + hop * np.arange(frames) - WINDOW / 2
    return np.maximum(0, np.ceil(samples * label_rate / SAMPLE_RATE - 0.5)).astype(np.int64)


def first_mfcc_frame(front_end: FrontEndConfig) -> int:
    """Return the MFCC frame, counted from 0 at 100 Hz, that labels the front-end's frame 0."""
    return int(nearest_labels(1, HOP, receptive_field_centre(front_end), MFCC_RATE)[0])


def stacking_frame(subsampling: int) -> int:
    """Return `first_mfcc_frame` of a front-end that stacks `subsampling` log-mel frames."""
    return first_mfcc_frame(FrontEndConfig(stem="stack", subsampling=subsampling))


def label_set_name(clusters: int, front_end: FrontEndConfig, label_rate: float = 0.0, window: float = 0.0) -> str:
    """Return the name of an MFCC label set's folder; sets of different rates or frames have different names.

    label_rate: rate in Hz of existing labels, or 0 for labels that `superbit` makes. window: in seconds of the features
    that are clustered, or 0 for one frame with differences.

    >>> label_set_name(100, FrontEndConfig())
    'mfcc100_25hz_frame1'
    >>> label_set_name(500, FrontEndConfig(), label_rate=50.0)
    'mfcc500_50hz'
    >>> label_set_name(256, FrontEndConfig(), window=0.4)
    'mfcc256_25hz_frame1_window400'
    """
    if label_rate:
        return f"mfcc{clusters}_{label_rate:g}hz"
    name = f"mfcc{clusters}_{SAMPLE_RATE / front_end.downsample_rate:g}hz_frame{first_mfcc_frame(front_end)}"
    return name + (f"_window{1000 * window:g}" if window else "")
