"""Files in the formats of microscopes and their software, written by hand if no library can."""

import gzip
import json
import struct

import h5py
import numpy as np
import tensorstore as ts
import tifffile
import zarr


def n5(folder, values, path="a.n5/s0", **attributes):
    """Write an N5 array with the axes of `values`, slowest first."""
    metadata = {
        "dimensions": values.shape[::-1],
        "blockSize": (8,) * values.ndim,
        "dataType": values.dtype.name,
        "compression": {"type": "gzip"},
    }
    place = folder / path
    store = ts.open(
        {"driver": "n5", "kvstore": {"driver": "file", "path": f"{place}/"}, "metadata": metadata},
        create=True,
    ).result()
    store[...] = values.T
    file = place / "attributes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **attributes}))
    return place


def webknossos(folder, values, scale=(8, 8, 40)):
    """Write a dataset folder with a colour layer, stored as (c, x, y, z), and a segmentation layer."""
    place = folder / "dataset"
    stored = values.transpose(2, 1, 0)[None]
    zarr.create_array(
        place / "color/1", data=np.ascontiguousarray(stored), dimension_names=("c", "x", "y", "z")
    )
    mag = {"mag": [1, 1, 1], "path": "./color/1", "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}}
    layer = {"name": "color", "category": "color", "dataFormat": "zarr3", "mags": [mag]}
    segments = {"name": "segmentation", "category": "segmentation", "dataFormat": "zarr3", "mags": []}
    properties = {"scale": {"factor": list(scale), "unit": "nanometer"}, "dataLayers": [layer, segments]}
    (place / "datasource-properties.json").write_text(json.dumps(properties))
    return place


def wkw(folder, values, packing=2, corner=(0, 0, 0), block=4, blocks=2):
    """Write a dataset with a WKW layer, raw (1) or LZ4-compressed (2), that begins at a corner (z, y, x)."""
    import imagecodecs

    place, side = folder / "wkw", block * blocks
    head = (b"WKW", 1, (blocks.bit_length() - 1) << 4 | (block.bit_length() - 1), packing)
    kind = {"uint8": 1, "uint16": 2}[values.dtype.name]
    (place / "color/1").mkdir(parents=True)
    header = struct.pack("<3sBBBBBQ", *head, kind, values.itemsize, 0)
    (place / "color/1/header.wkw").write_bytes(header)
    whole = np.pad(values, [(c, -(c + n) % side) for c, n in zip(corner, values.shape, strict=True)])
    for z, y, x in np.ndindex(*(n // side for n in whole.shape)):
        cube = whole[z * side :, y * side :, x * side :][:side, :side, :side]
        parts = []
        for number in range(blocks**3):  # the bits of x, y and z in turn
            bx, by, bz = (
                block * sum((number >> (3 * bit + axis) & 1) << bit for bit in range(8)) for axis in range(3)
            )
            part = cube[bz : bz + block, by : by + block, bx : bx + block].tobytes()
            parts.append(part if packing == 1 else imagecodecs.lz4_encode(part))
        ends = 16 + 8 * len(parts) * (packing > 1) + np.cumsum([len(part) for part in parts], dtype="<u8")
        start = int(ends[0]) - len(parts[0])
        table = ends.astype("<u8").tobytes() if packing > 1 else b""
        file = place / f"color/1/z{z}/y{y}/x{x}.wkw"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            struct.pack("<3sBBBBBQ", *head, kind, values.itemsize, start) + table + b"".join(parts)
        )
    sides = dict(zip(("depth", "height", "width"), values.shape, strict=True))
    layer = {
        "name": "color", "category": "color", "dataFormat": "wkw", "wkwResolutions": [{"resolution": 1}],
        "boundingBox": {"topLeft": corner[::-1], **sides},
    }  # fmt: skip
    properties = {"scale": [8, 8, 40], "dataLayers": [layer]}
    (place / "datasource-properties.json").write_text(json.dumps(properties))
    return place


def czi(folder, values, channels=1, scenes=1, meters=(4e-8, 8e-9, 8e-9)):
    """Write a CZI file with `values` + s + c in scene s and channel c."""
    from pylibCZIrw import czi as library

    path = folder / "a.czi"
    with library.create_czi(str(path), exist_ok=True) as file:
        for scene in range(scenes):
            for channel in range(channels):
                for z, plane in enumerate(values):
                    file.write(
                        (plane + scene + channel)[..., None].astype(values.dtype),
                        plane={"Z": z, "C": channel, "T": 0},
                        scene=scene,
                        location=(1000 * scene, 0),
                    )
        z, y, x = meters
        file.write_metadata("a", scale_x=x, scale_y=y, scale_z=z)
    return path


def imaris(folder, values, channels=1):
    """Write an Imaris file, padded to whole chunks as Imaris does, with voxels of 40 x 8 x 8 nm."""
    path = folder / "a.ims"
    depth, height, width = values.shape
    with h5py.File(path, "w") as file:
        info = file.create_group("DataSetInfo/Image")
        for key, value in {
            "Unit": "um", "ExtMin0": 0, "ExtMin1": 0, "ExtMin2": 0, "ExtMax0": 0.008 * width,
            "ExtMax1": 0.008 * height, "ExtMax2": 0.04 * depth, "X": width, "Y": height, "Z": depth,
        }.items():  # fmt: skip
            info.attrs[key] = letters(value)
        for channel in range(channels):
            group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint 0/Channel {channel}")
            padded = np.pad(values + channel, [(0, -n % 8) for n in values.shape])
            group.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
            for axis, n in zip("ZYX", values.shape, strict=True):
                group.attrs[f"ImageSize{axis}"] = letters(n)
    return path


def letters(value):
    """Return an attribute in Imaris's form: an array of single letters."""
    return np.array([c.encode() for c in str(value)], "S1")


def fibsem(path, values, version=8, nanometers=8.0):
    """Write a .dat of Janelia's FIB-SEMs; `values` are (y, x, channel), of 8 or 16 bits."""
    height, width, channels = values.shape
    header = bytearray(1024)
    struct.pack_into(">IHH", header, 0, 3555587570, version, 1)
    struct.pack_into(">BB", header, 32, channels, values.dtype == np.uint8)
    struct.pack_into(">II", header, 100, width, height)
    struct.pack_into("10s18s", header, 380, b"InLens", b"ESB")
    struct.pack_into(*((">d", header, 416) if version < 3 else (">f", header, 464)), nanometers)
    stored = values if values.dtype == np.uint8 else values.astype(">i2")
    path.write_bytes(bytes(header) + stored.tobytes() + b"a footer")
    return path


def amira(path, values, packing=None, order="LITTLE", box=(0, 0.248, 0, 0.184, 0, 0.16), unit="µm"):
    """Write an Amira volume: x varies fastest; the box joins the centres of the outermost voxels."""
    depth, height, width = values.shape
    kind = {"uint8": "byte", "uint16": "ushort", "int16": "short", "float32": "float"}[values.dtype.name]
    content = values.astype(values.dtype.newbyteorder("<" if order == "LITTLE" else ">")).tobytes()
    note = ""
    if packing == "HxZip":
        import zlib

        content = zlib.compress(content)
    if packing == "HxByteRLE":
        content = b"".join(
            bytes([128 + len(part)]) + part
            for part in (content[i : i + 100] for i in range(0, len(content), 100))
        )
    if packing:
        note = f"({packing},{len(content)})"
    units = f'Units {{ Coordinates "{unit}" }}\n' if unit else ""
    header = (
        f"# AmiraMesh BINARY-{order}-ENDIAN 3.0\n\n\ndefine Lattice {width} {height} {depth}\n\n"
        f'Parameters {{\n  {units}  BoundingBox {" ".join(map(str, box))},\n  CoordType "uniform"\n}}\n\n'
        f"Lattice {{ {kind} Data }} @1{note}\n\n# Data section follows\n@1\n"
    )
    path.write_bytes(header.encode("latin-1") + content + b"\n")
    return path


def nrrd(path, values, gzipped=False, nanometers=(8.0, 8.0, 40.0)):
    """Write an NRRD volume: sizes (x, y, z), x fastest."""
    kind = {"uint8": "uint8", "uint16": "uint16", "int16": "int16", "float32": "float"}[values.dtype.name]
    content = values.tobytes()
    directions = " ".join(
        f"({','.join(str(n if i == j else 0) for j in range(3))})" for i, n in enumerate(nanometers)
    )
    header = (
        f"NRRD0004\ntype: {kind}\ndimension: 3\nspace dimension: 3\n"
        f"sizes: {' '.join(map(str, values.shape[::-1]))}\n"
        f'space directions: {directions}\nspace units: "nm" "nm" "nm"\nendian: little\n'
        f"encoding: {'gzip' if gzipped else 'raw'}\n\n"
    )
    path.write_bytes(header.encode() + (gzip.compress(content) if gzipped else content))
    return path


def digital_micrograph(path, images, version=3, sizes=(8.0, 8.0, 40.0)):
    """Write a DM3 or DM4 file: a thumbnail, and images (z, y, x) or (y, x), with voxels in nanometers."""
    wide = version == 4
    count = ">q" if wide else ">i"

    def data(name, info, content):
        body = (
            b"%%%%" + struct.pack(count, len(info)) + b"".join(struct.pack(count, n) for n in info) + content
        )
        size = struct.pack(">q", len(body)) if wide else b""
        return b"\x15" + struct.pack(">H", len(name)) + name.encode() + size + body

    def group(name, tags):
        body = b"\1\0" + struct.pack(count, len(tags)) + b"".join(tags)
        size = struct.pack(">q", len(body)) if wide else b""
        return b"\x14" + struct.pack(">H", len(name)) + name.encode() + size + body

    def number(name, value, kind, code):
        return data(name, [code], struct.pack(f"<{kind}", value))

    def text(name, value):
        return data(name, [20, 4, len(value)], value.encode("utf-16-le"))

    def image(values, title):
        code, dm_type = {"uint8": (8, 6), "int16": (2, 1), "uint16": (4, 10), "float32": (6, 2)}[
            values.dtype.name
        ]
        dims = [
            group("", [number("Origin", 0, "f", 6), number("Scale", sizes[i], "f", 6), text("Units", "nm")])
            for i in range(values.ndim)
        ]
        calibrations = group(
            "Calibrations",
            [
                group(
                    "Brightness", [number("Origin", 0, "f", 6), number("Scale", 1, "f", 6), text("Units", "")]
                ),
                group("Dimension", dims),
            ],
        )
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        pixels = data("Data", [20, code, values.size], content)
        lengths = group("Dimensions", [number("", n, "I", 5) for n in values.shape[::-1]])
        depth = number("PixelDepth", values.itemsize, "I", 5)
        image_data = group(
            "ImageData", [calibrations, pixels, number("DataType", dm_type, "I", 5), lengths, depth]
        )
        return group("", [image_data, group("ImageTags", []), text("Name", title)])

    listed = [image(np.zeros((4, 4), np.uint8), "thumbnail")]
    listed += [image(values, f"image {i}") for i, values in enumerate(images)]
    thumbnails = group("Thumbnails", [group("", [number("ImageIndex", 0, "I", 5)])])
    tags = [group("ImageList", listed), thumbnails]
    root = b"\1\0" + struct.pack(count, len(tags)) + b"".join(tags)
    head = struct.pack(">iqi" if wide else ">iii", version, len(root), 1)
    path.write_bytes(head + root + bytes(8))
    return path


def sem(folder, vendor, image, nanometers=8.0):
    """Write an image like a manufacturer's software; the file, or a text beside it, states the pixel size.

    FEI, TESCAN and JEOL also state where the image ends and the data bar begins.
    """
    path = folder / f"{vendor}.tif"
    meters, height = nanometers * 1e-9, len(image)
    tags, options = [], {"metadata": None}
    if vendor == "fei":
        text = (
            f"[Scan]\r\nPixelWidth={meters}\r\nPixelHeight={meters}\r\n[Image]\r\nResolutionX={image.shape[1]}\r\n"
            f"ResolutionY={height - 40}\r\n[PrivateFei]\r\nDatabarHeight=40\r\n"
        )
        tags = [(34682, "s", 0, text, True)]
    elif vendor == "zeiss":
        text = f"0\r\n0\r\n0\r\n{meters}\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {nanometers} nm\r\n"
        tags = [(34118, "s", 0, text, True)]
    elif vendor == "zeiss_old":
        tags = [(34118, "s", 0, f"0\r\n0\r\n0\r\n{meters}\r\nDP_DETECTOR\r\nDetector = SE2\r\n", True)]
    elif vendor == "tescan":
        text = f"[MAIN]\r\nPixelSizeX={meters}\r\nPixelSizeY={meters}\r\nImageStripSize=40\r\n"
        tags = [(50431, 7, len(text), text.encode(), True)]
    elif vendor == "tescan_beside":
        (folder / f"{vendor}.hdr").write_text(
            f"[MAIN]\nPixelSizeX={meters}\nPixelSizeY={meters}\nImageStripSize=40\n"
        )
    elif vendor == "jeol":
        (folder / f"{vendor}.txt").write_text(
            f"$CM_FORMAT SEM\n$CM_FULL_SIZE {image.shape[1]} {height - 40}\n$$SM_MICRON_BAR 125\n"
            f"$$SM_MICRON_MARKER {nanometers / 8:g}um\n"
        )
    elif vendor == "gatan":
        tags = [(code, "s", 0, "nm", True) for code in (65003, 65004)]
        tags += [(code, "d", 1, nanometers, True) for code in (65009, 65010)]
    elif vendor == "cm":
        options |= {"resolution": (1e7 / nanometers, 1e7 / nanometers), "resolutionunit": "CENTIMETER"}
    elif vendor == "inch":
        options |= {"resolution": (2.54e7 / nanometers, 2.54e7 / nanometers), "resolutionunit": "INCH"}
    elif vendor == "imagej":
        options = {"imagej": True, "resolution": (1e3 / nanometers,) * 2, "metadata": {"unit": "micron"}}
    elif vendor == "ome":
        size = {"PhysicalSizeX": nanometers / 1e3, "PhysicalSizeY": nanometers / 1e3}
        options = {"ome": True, "metadata": {"axes": "YX", **size}}
    tifffile.imwrite(path, image, extratags=tags, **options)
    return path
