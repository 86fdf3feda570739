//! What views refuse and give.

use half::bf16;

use super::*;

fn code<T: std::fmt::Debug>(result: Result<T>) -> TensorErrorCode {
    result.expect_err("refused").code()
}

#[test]
fn elements_are_seen_where_they_lie() {
    let values = [1.5_f32, -2.0, 0.0];
    let view = TensorView::new(Dtype::F32, vec![3], bytemuck::cast_slice(&values)).expect("fits");
    let seen = view.as_slice::<f32>().expect("floats");
    assert_eq!(seen, values);
    assert_eq!(seen.as_ptr(), values.as_ptr());
    assert_eq!(code(view.as_slice::<i32>()), TensorErrorCode::Dtype);
    assert_eq!(code(view.as_slice::<u8>()), TensorErrorCode::Dtype);
}

#[test]
fn unaligned_elements_are_not_cast() {
    let words = [0_u64; 2];
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    let view = TensorView::new(Dtype::F32, vec![2], &bytes[1..9]).expect("fits");
    assert_eq!(code(view.as_slice::<f32>()), TensorErrorCode::Align);
    assert_eq!(view.to_f32().expect("copied"), [0.0, 0.0]);
}

#[test]
fn booleans_are_looked_at() {
    let view = TensorView::new(Dtype::Bool, vec![3], &[0, 1, 2]).expect("fits");
    assert_eq!(code(view.as_slice::<u8>()), TensorErrorCode::Value);
    assert_eq!(code(view.to_f32()), TensorErrorCode::Value);
    assert_eq!(
        view.rows(0..2).expect("rows").to_f32().expect("booleans"),
        [0.0, 1.0]
    );
}

#[test]
fn sizes_have_to_fit() {
    let of = |dtype, shape: &[u64], len: usize| {
        TensorView::new(dtype, shape.to_vec(), &[0; 64][..len]).map(|_| ())
    };
    assert_eq!(code(of(Dtype::F32, &[2], 7)), TensorErrorCode::Shape);
    assert_eq!(
        code(of(Dtype::U8, &[1 << 40, 1 << 40], 0)),
        TensorErrorCode::Overflow
    );
    assert_eq!(
        code(of(Dtype::U64, &[1 << 58], 0)),
        TensorErrorCode::Overflow
    );
    assert_eq!(code(of(Dtype::F4, &[3], 2)), TensorErrorCode::Dtype);
    of(Dtype::F6E2M3, &[4], 3).expect("four of six bits");
    of(Dtype::F64, &[], 8).expect("one element");
    of(Dtype::F64, &[0, 5], 0).expect("no element");
}

#[test]
fn rows_are_parts_of_the_first_dimension() {
    let bytes: Vec<u8> = (0..24).collect();
    let view = TensorView::new(Dtype::U16, vec![3, 4], &bytes).expect("fits");
    let rows = view.rows(1..2).expect("a row");
    assert_eq!((rows.shape(), rows.bytes()), (&[1, 4][..], &bytes[8..16]));
    assert_eq!(view.rows(3..3).expect("none").bytes(), &[0_u8; 0]);
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    for rows in [2..4, 2..1, u64::MAX - 1..u64::MAX] {
        assert_eq!(code(view.rows(rows)), TensorErrorCode::Shape);
    }
    let single = TensorView::new(Dtype::U8, vec![], &[1]).expect("fits");
    assert_eq!(code(single.rows(0..1)), TensorErrorCode::Shape);
    let halves = TensorView::new(Dtype::F4, vec![2, 3], &[0; 3]).expect("fits");
    assert_eq!(code(halves.rows(0..1)), TensorErrorCode::Dtype);
    halves.rows(0..2).expect("whole bytes");
}

#[test]
fn every_type_has_its_numbers() {
    let one = |dtype, bytes: &[u8]| {
        let view = TensorView::new(dtype, vec![1], bytes).expect("fits");
        view.to_f32()
    };
    assert_eq!(
        one(Dtype::Bf16, &bf16::from_f32(3.0).to_le_bytes()).expect("real"),
        [3.0]
    );
    assert_eq!(
        one(Dtype::I64, &(-7_i64).to_le_bytes()).expect("real"),
        [-7.0]
    );
    assert_eq!(code(one(Dtype::C64, &[0; 8])), TensorErrorCode::Dtype);
}

#[test]
fn a_blob_is_its_offsets() {
    let offsets = |ends: &[u64]| ViewBytes::Owned(aligned(ends));
    let blob = |ends: &[u64]| BlobView::new("utf8", ViewBytes::Borrowed(b"abc\xff"), offsets(ends));
    let good = blob(&[0, 0, 2, 4]).expect("rises");
    assert_eq!(good.len(), 3);
    assert_eq!(
        good.items().collect::<Vec<_>>(),
        [&b""[..], b"ab", b"c\xff"]
    );
    assert_eq!(good.text(1).expect("UTF-8"), "ab");
    assert_eq!(code(good.text(2)), TensorErrorCode::Value);
    assert_eq!(code(good.item(3)), TensorErrorCode::NotFound);
    assert_eq!(code(good.item(u64::MAX)), TensorErrorCode::NotFound);
    for bad in [&[][..], &[1, 4], &[0, 3, 2, 4], &[0, 3], &[0, 5]] {
        assert_eq!(code(blob(bad)), TensorErrorCode::Layout);
    }
    let odd = BlobView::new(
        "utf8",
        ViewBytes::Borrowed(b""),
        ViewBytes::Borrowed(&[0; 9]),
    );
    assert_eq!(code(odd), TensorErrorCode::Layout);
}

fn aligned(words: &[u64]) -> AlignedBytes {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let read = AlignedBytes::read(bytes.len() as u64, |at, piece| {
        let at = at as usize;
        piece.copy_from_slice(&bytes[at..at + piece.len()]);
        Ok(())
    });
    read.expect("it is there")
}
