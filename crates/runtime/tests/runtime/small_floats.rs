//! `toF32`: floats that no array of the language has.

use alknet_tensor::{Dtype, TensorView};

use crate::support::{outcome, spec};

/// What a script reads out of these bytes, bit by bit. There is one NaN.
fn read(dtype: Dtype, bytes: &[u8]) -> Vec<Option<u32>> {
    let count = bytes.len() as u64 * 8 / dtype.bits();
    let source = format!(
        "const small = tensor.alloc('{dtype}', [{count}]);
        small.data().set({bytes:?});
        const numbers = small.toF32(), bits = new Uint32Array(numbers.buffer);
        export default [...numbers].map((n, at) => Number.isNaN(n) ? null : bits[at])"
    );
    let mut spec = spec(&source);
    spec.grants.tensor = true;
    let value = outcome(spec).0.result.expect("numbers");
    serde_json::from_value(value).expect("whole numbers")
}

fn bits(numbers: &[f32]) -> Vec<Option<u32>> {
    let of = |number: &f32| (!number.is_nan()).then(|| number.to_bits());
    numbers.iter().map(of).collect()
}

/// Values of the tables in the formats' documents: the least, the greatest, one, and what is no number.
#[test]
fn values_of_the_documents() {
    let two = |exponent| 2_f32.powi(exponent);
    let (infinity, nan) = (f32::INFINITY, f32::NAN);
    let halves = [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -4.0, -6.0,
    ];
    for (dtype, bytes, numbers) in [
        (
            Dtype::F4,
            &[0x10, 0x32, 0x54, 0x76, 0x98, 0xfe][..],
            &halves[..],
        ),
        // 0b01_1111, 0b10_0001, 0 and 0b11_1111, from the lowest bit on.
        (
            Dtype::F6E2M3,
            &[0x5f, 0x08, 0xfc],
            &[7.5, -0.125, 0.0, -7.5],
        ),
        (
            Dtype::F6E3M2,
            &[0x5f, 0x08, 0xfc],
            &[28.0, -0.0625, 0.0, -28.0],
        ),
        (
            Dtype::F8E4M3,
            &[0x01, 0x7e, 0x38, 0x80, 0xff],
            &[two(-9), 448.0, 1.0, -0.0, nan],
        ),
        (
            Dtype::F8E5M2,
            &[0x01, 0x7b, 0x3c, 0xfc, 0x7d],
            &[two(-16), 57344.0, 1.0, -infinity, nan],
        ),
        (
            Dtype::F8E4M3Fnuz,
            &[0x01, 0x7f, 0x40, 0xff, 0x80],
            &[two(-10), 240.0, 1.0, -240.0, nan],
        ),
        (
            Dtype::F8E5M2Fnuz,
            &[0x01, 0x7f, 0x40, 0xff, 0x80],
            &[two(-17), 57344.0, 1.0, -57344.0, nan],
        ),
        (
            Dtype::F8E8M0,
            &[0, 1, 127, 254, 255],
            &[two(-127), two(-126), 1.0, two(127), nan],
        ),
        (Dtype::Bf16, &[0x80, 0x3f, 0x00, 0xc0], &[1.0, -2.0]),
    ] {
        assert_eq!(read(dtype, bytes), bits(numbers), "{dtype}");
    }
}

/// Every byte there is, against the reader in Rust.
#[test]
fn every_number_is_the_one_that_the_format_s_own_reader_has() {
    let bytes: Vec<u8> = (0..=255).chain([0, 0]).collect();
    for dtype in [
        Dtype::F4,
        Dtype::F6E2M3,
        Dtype::F6E3M2,
        Dtype::F8E4M3,
        Dtype::F8E5M2,
        Dtype::F8E8M0,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
        Dtype::Bf16,
    ] {
        let count = bytes.len() as u64 * 8 / dtype.bits();
        let view = TensorView::new(dtype, vec![count], &bytes).expect("it fits");
        let numbers = view.to_f32().expect("numbers");
        assert_eq!(read(dtype, &bytes), bits(&numbers), "{dtype}");
    }
}

#[test]
fn what_is_no_number_or_no_whole_byte_is_refused() {
    let source = "const said = [];
        for (const f of [() => tensor.alloc('C64', [1]).toF32(), () => tensor.alloc('F4', [3]),
            () => tensor.alloc('F4', [2, 3]).slice(1), () => tensor.alloc('F6_E2M3', [5])]) {
            try { f(); } catch (e) { said.push(e.code ?? e.name); }
        }
        const whole = tensor.alloc('F4', [4, 3]).slice(2);
        export default [...said, whole.byteLength, whole.toF32().length]";
    let mut spec = spec(source);
    spec.grants.tensor = true;
    let expected = serde_json::json!(["E_LIMIT", "RangeError", "RangeError", "RangeError", 3, 6]);
    assert_eq!(outcome(spec).0.result, Ok(expected));
}
