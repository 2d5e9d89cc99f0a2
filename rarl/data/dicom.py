"""Convert DICOM files to the image that a viewer would show: 8-bit grey or RGB, without the header.

pydicom applies the standard's grayscale pipeline (DICOM PS3.3, C.11): modality LUT or rescale, the first VOI LUT or
window, then the photometric interpretation. Only the header elements listed below are read, so that no name, date or
number of a patient can reach an output. Text that is burned into the pixels stays there; files whose header declares
it are counted and reported.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, get_decoder, pixel_array

from rarl.images import MAX_PIXELS

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


class _Unusable(ValueError):
    """A file that cannot be used; the message does not quote it."""


def to_png(path: str | Path) -> bytes:
    """Convert a single-frame DICOM file to PNG, deterministically.

    The first of several windows or VOI LUTs is applied; without any, the values are scaled from the lowest to the
    highest. Padding (PixelPaddingValue) is excluded from that range and black.

    Raises:
        ValueError: The file cannot be used; the message is one line and quotes nothing of the header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote odd values
            data = pydicom.dcmread(path, specific_tags=ELEMENTS)
            image = Image.fromarray(_shown(data))
    except _Unusable:
        raise
    except pydicom.errors.InvalidDicomError:
        raise ValueError("not a DICOM file (no mark DICM at byte 128)") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or 'damaged'})") from None
    except Exception:
        # pydicom raises nearly everything on a truncated file, and quotes its content.
        raise ValueError("a DICOM file that is cut off or damaged") from None
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def burned_in(path: str | Path) -> bool:
    """Return whether the header of a file that `to_png` reads declares text in the pixels (PS3.3, C.7.6.1.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
        try:
            return str(data.get("BurnedInAnnotation")).strip().upper() == "YES"
        except Exception:  # damaged: not declared
            return False


def _shown(data):
    """Return the image as a uint8 array, (rows, columns) or (rows, columns, 3)."""
    interpretation = _require_image(data)
    pixels = _decoded(data)
    if interpretation in GREY:
        return _grey(data, pixels)
    return _palette(data, pixels) if interpretation == PALETTE else _eight_bits(data, pixels)


def _require_image(data) -> str:
    """Return the photometric interpretation; refuse a file that is not one readable image."""
    if "PixelData" not in data:
        raise _Unusable("no pixel data (a report or a plan, or cut off before them)")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _Unusable(f"multi-frame ({frames} frames): export the frame that the question is about")
    if data.Rows * data.Columns > MAX_PIXELS:
        raise _Unusable(f"{data.Columns} x {data.Rows} pixels, more than {MAX_PIXELS:,}")
    interpretation = data.get("PhotometricInterpretation")
    if interpretation not in (*GREY, *COLOUR, PALETTE):
        raise _Unusable(f"photometric interpretation is none of {', '.join((*GREY, *COLOUR, PALETTE))}")
    return interpretation


def _decoded(data):
    """Return the stored values; YBR as RGB."""
    syntax = data.file_meta.TransferSyntaxUID
    try:
        if get_decoder(syntax).is_available:
            return pixel_array(data)
    except (NotImplementedError, RuntimeError):
        pass  # a syntax, or a variant of it, that pydicom does not decode
    name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
    raise _Unusable(
        f"the transfer syntax ({name}) does not decode here: `pip install 'pylibjpeg[all]'`, or export it uncompressed"
    )


def _grey(data, pixels):
    _take_functional_groups(data)
    for names in (("RescaleSlope", "RescaleIntercept"), ("WindowCenter", "WindowWidth")):
        if any(data.get(name) in (None, "") for name in names):  # one without the other has no meaning
            for name in set(names) & set(data.dir()):
                del data[name]
    padding = _padding(data, pixels)
    values = apply_modality_lut(pixels, data).astype(np.float64)
    if not np.isfinite(values).all():
        raise _Unusable("rescaled values that are no numbers")
    if data.get("VOILUTSequence"):
        values, low, high = _voi_lut(data, values)
    elif "WindowWidth" in data:
        with np.errstate(over="ignore"):  # a sigmoid's tails
            low, high = apply_windowing(np.array([-1e12, 1e12]), data)
            values = apply_windowing(values, data)
    else:
        inside = values[~padding] if not padding.all() else values
        low, high = inside.min(), inside.max()
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
