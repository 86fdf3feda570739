//! Files of other formats for tensors, known by their first bytes.

use super::PREFIX_BYTES;

/// First bytes of other formats, with what such a file is and what to do with it. Read as the length of a header, all of
/// them are larger than a header may be.
const FORMATS: [(&[u8], &str); 8] = [
    (
        b"\x93NUMPY",
        "an array of NumPy (.npy): 'alknet tensor convert FILE.npy OUT.mt' makes a tensor file of it",
    ),
    (
        b"PK\x03\x04",
        "a ZIP archive: 'alknet tensor convert FILE.npz OUT.mt' makes a tensor file of one of NumPy; save one of \
         PyTorch as safetensors",
    ),
    (
        b"GGUF",
        "a model for llama.cpp (GGUF), which this program does not read: take the model as safetensors",
    ),
    (
        b"\x89HDF",
        "an HDF5 file, which this program does not read: save it as safetensors",
    ),
    // PROTO of protocols 2 to 5 (Python, pickletools), with which every pickle of Python 3 begins.
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
];

const PICKLE: &str = "a pickle of Python, which may run code and which this program does not read: save it as safetensors";

/// What a file with these first bytes is, if it is in another known format.
pub(super) fn foreign_format(prefix: &[u8; PREFIX_BYTES as usize]) -> Option<&'static str> {
    let found = FORMATS.iter().find(|(first, _)| prefix.starts_with(first));
    found.map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use crate::error::TensorErrorCode;
    use crate::header::header_len;
    use crate::limits::ContainerLimits;

    #[test]
    fn files_of_other_programs_are_named() {
        let limits = ContainerLimits::safetensors();
        for (prefix, said) in [
            (
                b"\x93NUMPY\x01\x00",
                "'alknet tensor convert FILE.npy OUT.mt'",
            ),
            (
                b"PK\x03\x04\x14\x00\x00\x00",
                "'alknet tensor convert FILE.npz OUT.mt'",
            ),
            (b"GGUF\x03\x00\x00\x00", "GGUF"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x80\x02}q\x00(X\x06", "pickle"),
            (b"\x80\x04\x95\x20\x00\x00\x00\x00", "pickle"),
        ] {
            let refused = header_len(prefix, u64::MAX, &limits).expect_err(said);
            assert_eq!(refused.code(), TensorErrorCode::Header, "{said}");
            assert!(refused.what().contains(said), "{refused}");
        }
        let other = header_len(b"notes.tx", u64::MAX, &limits).expect_err("too long");
        assert_eq!(other.code(), TensorErrorCode::Limit);
        // The same first bytes may be those of a length.
        let len = header_len(&[0x80, 4, 0, 0, 0, 0, 0, 0], 4096, &limits);
        assert_eq!(len.expect("a length"), 0x480);
    }
}
