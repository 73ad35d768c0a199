"""The demo's sound: a melody whose instrument and rhythm tell the audio facets."""

import numpy as np

from avrec.batch import Array
from avrec.data.demo.domains import DOMAINS

SECONDS = 3
SAMPLE_RATE = 16_000

_REGISTERS = (110.0, 400.0, 1400.0)
_TEMPI = (1.4, 6.0)


def play(domain: str, timbre: int, rhythm: int, rng: np.random.Generator) -> Array:
    """One item's sound, float32 (samples,) in [-1, 1].

    Timbres are flute, organ, bell, strings, breath and pluck; rhythms a low, middle or high register, slow, then fast.
    """
    voice = DOMAINS[domain]
    count = SECONDS * SAMPLE_RATE
    base = _REGISTERS[rhythm % 3] * 2 ** (rng.uniform(-2, 2) / 12)
    step = SAMPLE_RATE / (_TEMPI[rhythm // 3] * rng.uniform(0.9, 1.1))
    sound = np.zeros(count)
    for start in np.arange(rng.uniform(0, 0.3) * step, count - 400, step).astype(int):
        pitch = base * 2 ** (rng.choice(voice.scale) / 12)
        note = _note(timbre, pitch, int(min(step * 0.85, count - start)), voice.attack, rng)
        sound[start : start + len(note)] += note * rng.uniform(0.7, 1.0)
    delay = int(0.19 * SAMPLE_RATE)
    sound[delay:] += voice.echo * sound[:-delay]
    sound += voice.hum * np.sin(2 * np.pi * 55 * np.arange(count) / SAMPLE_RATE)
    sound *= rng.uniform(0.35, 0.8) / max(float(np.abs(sound).max()), 1e-6)
    return (sound + rng.normal(0, 0.003, size=count)).astype(np.float32)


_PARTIALS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((1, 1.0), (2, 0.08)),
    ((0.5, 0.8), (1, 1.0), (3, 0.7), (5, 0.5), (7, 0.35)),
    ((1, 1.0), (2.76, 0.7), (5.4, 0.5), (8.93, 0.3)),
    tuple((k, 1.0 / k**0.7) for k in range(1, 20)),
    (),
    tuple((k, 1.0 / k) for k in range(1, 8)),
)


def _note(timbre: int, pitch: float, count: int, attack: float, rng: np.random.Generator) -> Array:
    time = np.arange(count) / SAMPLE_RATE
    vibrato = {0: 0.006, 3: 0.02}.get(timbre, 0.0) * np.sin(2 * np.pi * 5.5 * time)
    cycles = pitch * (time + np.cumsum(vibrato) / SAMPLE_RATE)
    note = np.zeros(count)
    for ratio, strength in _PARTIALS[timbre]:
        if pitch * ratio < 7500:
            # High partials of a bell die first, as they do in bronze.
            fading = np.exp(-time * 4 * ratio**0.5) if timbre == 2 else 1.0
            turns = ratio * cycles + rng.uniform()
            # Within one turn single precision is enough, and several times as fast.
            note += strength * fading * np.sin((2 * np.pi * (turns - np.floor(turns))).astype(np.float32))
    if timbre == 3:
        note += rng.normal(0, 0.25, size=count)  # the bow
    if timbre == 4:
        note = _breath(pitch, count, rng)
    if timbre == 5:
        note = note * np.exp(-time * 28)
        note[:160] += rng.normal(0, 1.5, size=len(note[:160]))
    rise = np.minimum(time / (0.002 if timbre in (2, 5) else attack), 1.0)
    fall = np.minimum((time[-1] - time) / 0.02, 1.0)
    return note * rise * fall


def _breath(pitch: float, count: int, rng: np.random.Generator) -> Array:
    """Noise in a band of about an octave around the pitch, over a faint hiss."""
    spectrum = np.fft.rfft(rng.normal(size=count))
    octaves = np.log2(np.fft.rfftfreq(count, 1 / SAMPLE_RATE).clip(1) / pitch)
    band = np.fft.irfft(spectrum * (np.exp(-((octaves / 0.4) ** 2)) + 0.04), n=count)
    return band / max(float(band.std()), 1e-6) * 0.5
