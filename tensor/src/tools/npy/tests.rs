//! Headers and elements, right and wrong.

use super::*;

fn file(literal: &str, elements: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\0".to_vec();
    file.extend((literal.len() as u16).to_le_bytes());
    file.extend(literal.as_bytes());
    file.extend(elements);
    file
}

fn elements(literal: &str, elements: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let file = file(literal, elements);
    let npy = Npy::read(&file[..]).expect("a header");
    npy.write_elements(&mut out).expect("elements");
    out
}

fn refused(literal: &str) -> TensorErrorCode {
    Npy::read(&file(literal, &[])[..])
        .expect_err("refused")
        .code()
}

#[test]
fn what_is_written_is_read() {
    for (dtype, _) in TYPES {
        for shape in [&[][..], &[3], &[0, 2], &[2, 3, 4]] {
            let header = npy_header(ElementType::Known(dtype), shape).expect("a header");
            assert_eq!(header.len() % ALIGN, 0);
            let read = Npy::read(&header[..]).expect("it is read").header;
            assert_eq!((read.dtype, &read.shape[..]), (dtype, shape));
            assert!(!read.big_endian && !read.fortran_order);
        }
    }
    let bf16 = npy_header(ElementType::Known(Dtype::Bf16), &[1]);
    assert_eq!(bf16.expect_err("refused").code(), TensorErrorCode::Dtype);
}

#[test]
fn bytes_and_dimensions_are_turned_round() {
    let big = elements(
        "{'descr': '>u2', 'fortran_order': False, 'shape': (2,)}",
        &[1, 2, 3, 4],
    );
    assert_eq!(big, [2, 1, 4, 3]);
    let complex = elements(
        "{'descr':'>c8','fortran_order':False,'shape':()}",
        &[1, 2, 3, 4, 5, 6, 7, 8],
    );
    assert_eq!(complex, [4, 3, 2, 1, 8, 7, 6, 5]);
    let columns = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }";
    assert_eq!(elements(columns, &[1, 4, 2, 5, 3, 6]), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn wrong_headers_are_refused() {
    assert_eq!(
        refused("{'descr': '<f4', 'fortran_order': False}"),
        TensorErrorCode::Header
    );
    assert_eq!(
        refused("{'descr': '<f4', 'descr': '<f4'}"),
        TensorErrorCode::DupKey
    );
    assert_eq!(
        refused("{'descr': '<c16', 'fortran_order': False, 'shape': ()}"),
        TensorErrorCode::Dtype
    );
    assert_eq!(refused("{'descr': [('a', '<f4')]}"), TensorErrorCode::Dtype);
    assert_eq!(
        refused("{'descr': '<f4', 'shape': (-1,)}"),
        TensorErrorCode::Header
    );
    assert_eq!(refused("__import__('os')"), TensorErrorCode::Header);
    let many = "1,".repeat(40);
    assert_eq!(
        refused(&format!("{{'shape': ({many})}}")),
        TensorErrorCode::Limit
    );
    assert_eq!(
        Npy::read(&b"PK\x03\x04 and more"[..])
            .expect_err("refused")
            .code(),
        TensorErrorCode::Header
    );
    assert_eq!(
        Npy::read(&b"\x93NUM"[..]).expect_err("refused").code(),
        TensorErrorCode::Io
    );
}

#[test]
fn elements_that_are_missing_are_missed() {
    for order in ["True", "False"] {
        for kind in ["<u2", ">u2"] {
            let literal = format!("{{'descr':'{kind}','fortran_order':{order},'shape':(2, 2)}}");
            let file = file(&literal, &[0; 7]);
            let npy = Npy::read(&file[..]).expect("a header");
            let error = npy.write_elements(&mut Vec::new()).expect_err("refused");
            assert_eq!(error.code(), TensorErrorCode::Io);
        }
    }
}
