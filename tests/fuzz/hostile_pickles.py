"""Pickles that do harm where `pickle.loads` reads them: calls of functions, and bytes that ask for memory or depth."""

import copyreg
import os
import pickle
import pickletools
from pathlib import Path

from jrm_plugin.server.pickles import MAX_OBJECTS


def short(opcode: str, *arguments: bytes) -> bytes:
    """An instruction by its name."""
    return next(o.code for o in pickletools.opcodes if o.name == opcode).encode("latin-1") + b"".join(arguments)


class Call:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def gadgets(witness: Path) -> dict[str, bytes]:
    """Pickles that do harm where `pickle.loads` reads them; each would make the file `witness`."""
    command = f"touch {witness}"
    python = f"open({str(witness)!r}, 'w').close()"
    return {
        "os.system": pickle.dumps(Call(os.system, command)),
        "in a list": pickle.dumps({"images": [Call(os.system, command)]}),
        "eval": pickle.dumps(Call(eval, python)),
        "exec": pickle.dumps(Call(exec, python)),
        "open": pickle.dumps(Call(open, str(witness), "w")),
        "getattr": pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
        "protocol 0": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "instance": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "by the stack": short("PROTO", b"\4") + b"\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(command)]) + command.encode() + b"\x85R.",
        "extension": short("EXT1", b"\1") + b".",
        "persistent": b"Pos\n.",
        "new object with keywords": short("PROTO", b"\4") + b"cos\nsystem\n)}\x92.",
        "dotted name": short("PROTO", b"\4") + b"\x8c\x08builtins\x8c\x0aeval.x.y.z\x93.",
        "an image's own": b"\x80\x02cPIL.Image\nopen\nU\x01a\x85R.",
        "numpy's loader": b"\x80\x02cnumpy\nload\nX\x01\0\0\0a\x85R.",
        "a module of the list": b"\x80\x02cnumpy._core.multiarray\nfromfile\nX\x01\0\0\0a\x85R.",
        "build on a name": b"\x80\x02cnumpy\ndtype\n}X\x01\0\0\0aK\x01sb.",
        "build on a list": b"\x80\x02]}X\x01\0\0\0aK\x01sb.",
        "a name as a value": b"\x80\x02]cnumpy\ndtype\na.",
        "a name in a tuple": b"\x80\x02]cnumpy\ndtype\n\x85a.",
        "only a name": b"\x80\x02cnumpy\ndtype\n.",
        "an unfinished image": b"\x80\x02cPIL.Image\nImage\n)\x81.",
        "an unfinished array": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n)R.",
        "attribute of the copier": pickle.dumps(Call(copyreg._reconstructor, object, object, None)),
    }  # fmt: skip


def array_of(dtype: bytes, shape: bytes, content: bytes = b"C\0") -> bytes:
    """An array as protocol 4 writes it; `dtype` is a text, `shape` and `content` are instructions."""
    kind = (
        b"cnumpy\ndtype\n\x8c" + bytes([len(dtype)]) + dtype + b"\x89\x88\x87R(K\3\x8c\1|NNNJ\xff\xff\xff\xffK\0K\0tb"
    )
    start = b"\x80\x04cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R(K\1"
    return start + shape + kind + b"\x89" + content + b"tb."


BOMBS = {
    "place in the memo": b"\x80\x02]" + short("LONG_BINPUT", b"\xff\xff\xff\x7f") + b"." + b"x",
    "bytes that do not come": b"\x80\x04" + short("BINBYTES8", (2**40).to_bytes(8, "little")) + b"abc",
    "an array of bytes that do not come": b"\x80\x05" + short("BYTEARRAY8", (2**40).to_bytes(8, "little")),
    "text that does not come": b"\x80\x04" + short("BINUNICODE8", (2**62).to_bytes(8, "little")),
    "a frame that does not come": b"\x80\x04" + short("FRAME", (2**62).to_bytes(8, "little")) + b"]",
    "a number of many digits": b"L" + b"9" * 10**6 + b"L\n.",
    "a number of many bits": b"\x80\x02" + short("LONG4", (10**6).to_bytes(4, "little")) + b"\x01" * 10**6 + b".",
    "nested lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 10**5 + b".",
    "many lists": b"\x80\x02]" + b"]a" * MAX_OBJECTS + b".",
    "many marks": b"\x80\x02" + b"(" * 10**6 + b".",
    "laughs": b"\x80\x02]q\0" + b"".join(b"](" + b"h" + bytes([k]) + (b"h" + bytes([k])) * 9 + b"eq" + bytes([k + 1])
                                          for k in range(20)) + b".",
    "itself": b"\x80\x02]q\0h\0a.",
    "each other": b"\x80\x02]q\0]q\1h\0ah\1a.",
    "changed later": b"\x80\x02]q\0]q\1h\0a0h\0h\1a.",
    "keys that collide": b"\x80\x02}(" + b"".join(
        b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(1, 1000)) + b"u.",
    "a huge array": array_of(b"u1", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "an array of nothing": array_of(b"U0", b"J\xff\xff\xff\x7f\x85"),
    "an array whose size overflows": array_of(b"u8", b"\x8a\x08\0\0\0\0\0\0\0\x20K\x08\x86"),
    "a negative array": array_of(b"u1", b"J\xff\xff\xff\xff\x85"),
    "an array of objects": array_of(b"O8", b"K\1\x85", b"]Na"),
    "an array of records": array_of(b"V8", b"K\1\x85", b"C\x08abcdefgh"),
    "an array of times": array_of(b"M8", b"K\1\x85", b"C\x08abcdefgh"),
    "a huge image": b"\x80\x04cPIL.Image\nImage\n)\x81](}\x8c\3RGBJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86NC\0eb.",
    "an image of another mode": b"\x80\x04cPIL.Image\nImage\n)\x81](}\x8c\3XYZK\1K\1\x86NC\1aeb.",
    "an image without pixels": b"\x80\x04cPIL.Image\nImage\n)\x81](}\x8c\3RGBK\0K\0\x86NC\0eb.",
    "two values": b"\x80\x02]].",
    "more behind the end": b"\x80\x02].].",
    "nothing": b"",
    "no pickle": b"GET / HTTP/1.1",
}  # fmt: skip
