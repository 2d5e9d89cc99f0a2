"""Convert DICOM files to the image that a viewer would show: 8-bit grey or RGB, without the header.

pydicom applies the standard's grayscale pipeline (DICOM PS3.3, C.11): modality LUT or rescale, the first VOI LUT or
window, then the photometric interpretation. Only the header elements listed below are read, so that no name, date or
number of a patient can reach an output. Text that is burned into the pixels stays there; files whose header declares
it are counted and reported.

Decoders of lossy JPEG differ in the last bits. They are tried in a fixed order, those that are always installed first,
so that an optional package makes more files readable but changes the pixels of none.
"""

import io
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, get_decoder, pixel_array

from rarl.images import MAX_PIXELS, frames_fault

#: All that is read of a file, in addition to its transfer syntax and BurnedInAnnotation. None identifies a person.
ELEMENTS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData",
    *(f"{kind}{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
      for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))),
]  # fmt: skip
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
#: pydicom's plugins, in order. pylibjpeg is optional; GDCM and pyjpegls are never used.
DECODERS = ("pydicom", "pillow", "pylibjpeg")


#: The centre and the width of a window, in the values after the modality LUT (Hounsfield units of a CT image).
Window = tuple[float, float]
T = TypeVar("T")


class _Unusable(ValueError):
    """A file that cannot be used; the message does not quote it."""


@dataclass(frozen=True)
class Values:
    """What a file's values are, for a viewer that windows them."""

    low: float
    high: float
    windows: list[Window]
    """Those of the header, if it has any, and the whole range."""
    inverted: bool
    """Whether the lowest value is white (MONOCHROME1)."""


def to_png(path: str | Path) -> bytes:
    """Convert a single-frame DICOM file to PNG, deterministically.

    The first of several windows or VOI LUTs is applied; without any, the values are scaled from the lowest to the
    highest. Padding (PixelPaddingValue) is excluded from that range and black.

    Raises:
        ValueError: The file cannot be used; the message is one line and quotes nothing of the header.
    """
    out = io.BytesIO()
    to_image(path).save(out, "PNG")
    return out.getvalue()


def to_image(path: str | Path, window: Window | None = None) -> Image.Image:
    """Convert as `to_png`, with another window if one is given; the width is at least 1."""
    return Image.fromarray(_computed(path, lambda data: _shown(data, window)))


def values_of(path: str | Path) -> Values | None:
    """Return the range of a file's values and its windows; None for colours, and for 8 bits a pixel or fewer.

    Raises:
        ValueError: As `to_png`.
    """
    return _computed(path, _values_of)


def _computed(path: str | Path, compute: Callable[[pydicom.Dataset], T]) -> T:
    """Return what is computed of a file's elements; all errors are a ValueError that quotes nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote odd values
            return compute(pydicom.dcmread(path, specific_tags=ELEMENTS))
    except _Unusable:
        raise
    except pydicom.errors.InvalidDicomError:
        raise ValueError("not a DICOM file (no mark DICM at byte 128)") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or 'damaged'})") from None
    except Exception:
        # pydicom raises nearly everything on a truncated file, and quotes its content.
        raise ValueError("a DICOM file that is cut off or damaged") from None


def burned_in(path: str | Path) -> bool:
    """Return whether the header of a file that `to_png` reads declares text in the pixels (PS3.3, C.7.6.1.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
        try:
            return str(data.get("BurnedInAnnotation")).strip().upper() == "YES"
        except Exception:  # damaged: not declared
            return False


def _shown(data, window: Window | None):
    """Return the image as a uint8 array, (rows, columns) or (rows, columns, 3)."""
    interpretation = _require_image(data)
    pixels = _decoded(data)
    if interpretation in GREY:
        return _grey(data, pixels, window)
    return _palette(data, pixels) if interpretation == PALETTE else _eight_bits(data, pixels)


def _require_image(data) -> str:
    """Return the photometric interpretation; refuse a file that is not one readable image."""
    if "PixelData" not in data:
        raise _Unusable("no pixel data: a report or a plan, or cut off before them")
    if fault := frames_fault(int(data.get("NumberOfFrames") or 1)):
        raise _Unusable(fault)
    if data.Rows * data.Columns > MAX_PIXELS:
        raise _Unusable(f"more than {MAX_PIXELS:,} pixels ({data.Columns} x {data.Rows})")
    interpretation = data.get("PhotometricInterpretation")
    if interpretation not in (*GREY, *COLOUR, PALETTE):
        raise _Unusable(f"photometric interpretation is none of {', '.join((*GREY, *COLOUR, PALETTE))}")
    return interpretation


def _decoded(data):
    """Return the stored values; YBR as RGB."""
    syntax, missing = data.file_meta.TransferSyntaxUID, ""
    with suppress(NotImplementedError):  # pydicom does not know the syntax
        decoder = get_decoder(syntax)
        missing = "".join(line for line in decoder.missing_dependencies if line.startswith("pylibjpeg "))
        for plugin in [name for name in DECODERS if decoder.is_native or name in decoder.available_plugins]:
            with suppress(NotImplementedError, RuntimeError):  # a variant that this plugin does not decode
                return pixel_array(data, decoding_plugin=plugin)
    packages = " ".join(re.findall(r"(pylibjpeg[\w-]*)>", missing))
    install = f"`pip install --upgrade {packages}`, or " if packages else ""
    name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
    raise _Unusable(f"its compression does not decode here: {install}export it uncompressed (transfer syntax {name})")


def _values_of(data) -> Values | None:
    if _require_image(data) not in GREY or data.BitsStored <= 8:
        return None
    values, padding = _rescaled(data, _decoded(data))
    low, high = _range(values, padding)
    header = [np.atleast_1d(data.get(name, [])) for name in ("WindowCenter", "WindowWidth")]
    windows = [(float(centre), float(width)) for centre, width in zip(*header)]
    windows.append(((low + high + 1) / 2, high - low + 1))
    return Values(low, high, windows, data.PhotometricInterpretation == "MONOCHROME1")


def _rescaled(data, pixels):
    """Return the values after the modality LUT, and a mask of the padding."""
    _take_functional_groups(data)
    for names in (("RescaleSlope", "RescaleIntercept"), ("WindowCenter", "WindowWidth")):
        if any(data.get(name) in (None, "") for name in names):  # one without the other has no meaning
            for name in set(names) & set(data.dir()):
                del data[name]
    padding = _padding(data, pixels)
    values = apply_modality_lut(pixels, data).astype(np.float64)
    if not np.isfinite(values).all():
        raise _Unusable("rescaled values that are no numbers")
    return values, padding


def _range(values, padding) -> tuple[float, float]:
    """Return the lowest and the highest value outside the padding."""
    inside = values[~padding] if not padding.all() else values
    return float(inside.min()), float(inside.max())


def _grey(data, pixels, window: Window | None):
    values, padding = _rescaled(data, pixels)
    if window:
        data.VOILUTSequence = None
        data.WindowCenter, data.WindowWidth = (f"{value:.8g}" for value in window)
    if data.get("VOILUTSequence"):
        values, low, high = _voi_lut(data, values)
    elif "WindowWidth" in data:
        with np.errstate(over="ignore"):  # a sigmoid's tails
            low, high = apply_windowing(np.array([-1e12, 1e12]), data)
            values = apply_windowing(values, data)
    else:
        low, high = _range(values, padding)
    share = (values - low) / (high - low) if high != low else np.zeros_like(values)
    grey = (np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)
    if data.PhotometricInterpretation == "MONOCHROME1":  # the lowest value is white
        grey = 255 - grey
    grey[padding] = 0
    return grey


def _take_functional_groups(data) -> None:
    """Copy an enhanced file's rescale and window to where classic files have them."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in data.get(groups) or []:
            for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(sequence) or []:
                    data.update({element.tag: element for element in item if element.keyword in ELEMENTS})


def _padding(data, pixels):
    """Return a mask of the padding values (PS3.3, C.7.5.1.1.2)."""
    ends = [data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")]
    ends = [end for end in ends if isinstance(end, int)]
    if not ends or data.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, bool)
    return (pixels >= min(ends)) & (pixels <= max(ends))


def _voi_lut(data, values):
    """Return (values through the first VOI LUT, its lowest, its highest possible value)."""
    item = data.VOILUTSequence[0]
    entries, first, depth = item.LUTDescriptor
    # With 8 bits pydicom would wrap around in a table of more than 256 entries.
    item.LUTDescriptor = [entries, first, 16]
    inside = np.clip(np.rint(values), first, first + (entries or 1 << 16) - 1).astype(np.int64)
    return apply_voi(inside, data).astype(np.float64), 0, 2**depth - 1


def _palette(data, pixels):
    entries, first, depth = data.RedPaletteColorLookupTableDescriptor
    entries = entries or 1 << 16
    if depth == 8 and entries > 256:
        raise _Unusable("a palette of 8-bit colours with more than 256 entries")
    inside = np.clip(pixels.astype(np.int64), first, first + entries - 1)
    colours = apply_color_lut(inside, data)
    return (colours >> 8 if depth == 16 else colours).astype(np.uint8)


def _eight_bits(data, pixels):
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels.astype(np.int64) >> max(data.BitsStored - 8, 0)).clip(0, 255).astype(np.uint8)
