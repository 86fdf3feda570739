//! Products of matrices beside a reference in 64-bit floats, and beside NumPy's.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_call::CallBody;
use alknet_test_support::{eventually, is_campaign, limited, skip, skipped};
use serde_json::{Value, json};

use super::node::{GpuTestCaller, GpuTestNode, LONG, MatrixRng, NODE, floats, inline, le, patient};
use crate::adapter;

/// Products whose shapes are drawn in a run of the tests, and in `cargo xtask soak counts`.
const DRAWN: [usize; 2] = [8, 40];

/// Where the set-up put the Python packages.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

/// A matrix inside some floats.
#[derive(Clone, Debug)]
struct MatrixFixture {
    data: Vec<f32>,
    offset: usize,
    shape: [usize; 2],
    strides: [isize; 2],
}

impl MatrixFixture {
    fn dense(dice: &mut MatrixRng, rows: usize, columns: usize) -> Self {
        Self {
            data: dice.floats(rows * columns),
            offset: 0,
            shape: [rows, columns],
            strides: [columns.cast_signed(), 1],
        }
    }

    /// Some way in which a matrix can lie.
    fn anyhow(dice: &mut MatrixRng, rows: usize, columns: usize) -> Self {
        let (gap, before) = (dice.below(3), dice.below(5));
        let width = columns + gap;
        let span = (rows * width).max(rows * (columns + 1)).max(1);
        let data = dice.floats(before + span);
        let (offset, strides) = match dice.below(5) {
            0 => (before, [width.cast_signed(), 1]),
            // Turned.
            1 => (before, [1, rows.max(1).cast_signed()]),
            // From the end backwards.
            2 => (before + span - 1, [-columns.cast_signed(), -1]),
            // One row again and again.
            3 => (before, [0, 1]),
            _ => (before, [columns.cast_signed(), 1]),
        };
        Self {
            data,
            offset,
            shape: [rows, columns],
            strides,
        }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let away = row.cast_signed() * self.strides[0] + column.cast_signed() * self.strides[1];
        f64::from(self.data[self.offset.strict_add_signed(away)])
    }

    fn tensor(&self, person: &GpuTestCaller) -> Value {
        let bytes = le(&self.data);
        if bytes.len() <= 64 << 10 {
            return inline("F32", &[self.data.len()], &bytes);
        }
        json!({ "handle": person.create("F32", &[self.data.len()], &bytes) })
    }

    fn view(&self) -> Value {
        json!({ "offset": self.offset, "shape": self.shape, "strides": self.strides })
    }
}

fn multiply(
    person: &GpuTestCaller,
    a: &MatrixFixture,
    b: &MatrixFixture,
    way: &str,
) -> (CallBody, Vec<f32>) {
    let input = json!({
        "a": a.tensor(person), "b": b.tensor(person),
        "a_view": a.view(), "b_view": b.view(),
        "variant": way,
    });
    let answer = person.ask("compute/matmul", &input);
    let product = answer.value()["product"].clone();
    assert_eq!(product["shape"], json!([a.shape[0], b.shape[1]]));
    let bytes = person.bytes(&answer, &product);
    (answer, floats(&bytes))
}

/// Sums of `k` products of 32-bit floats are off by at most `k` roundings of what the terms add up to
/// without their signs, in whatever order they are added; as many again for what reads them.
#[track_caller]
fn close(product: &[f32], a: &MatrixFixture, b: &MatrixFixture, what: &str) {
    let ([m, k], n) = (a.shape, b.shape[1]);
    assert_eq!(product.len(), m * n, "{what}");
    for row in 0..m {
        for column in 0..n {
            let terms = (0..k).map(|step| a.at(row, step) * b.at(step, column));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term: f64| {
                (sum + term, size + term.abs())
            });
            let off = (f64::from(product[row * n + column]) - sum).abs();
            let most =
                2.0 * k as f64 * f64::from(f32::EPSILON) * size + f64::from(f32::MIN_POSITIVE);
            assert!(
                off <= most,
                "{what} at {row}, {column}: off by {off}, at most {most}"
            );
        }
    }
}

fn drawn() -> usize {
    DRAWN[usize::from(is_campaign())]
}

fn ways() -> &'static [&'static str] {
    match adapter() {
        Ok(()) => &["wgsl", "host", "auto"],
        Err(why) => {
            skipped(
                "Vulkan adapter",
                format_args!("only on the processor: {why}"),
            );
            &["host", "auto"]
        }
    }
}

#[test]
fn products_are_right_whatever_the_shape() {
    let person = NODE.person("products");
    let mut dice = MatrixRng::new(2);
    let shapes = [
        [1, 1, 1],
        [1, 7, 1],
        [7, 1, 7],
        [3, 5, 7],
        [4, 4, 4],
        [5, 4, 4],
        [4, 4, 5],
        [17, 33, 9],
        [64, 64, 64],
        [65, 63, 67],
        [128, 2, 130],
        [1, 300, 1],
        [200, 3, 1],
        // More than is copied at once, in every direction.
        [350, 520, 70],
    ];
    for [m, k, n] in shapes {
        let (a, b) = (
            MatrixFixture::dense(&mut dice, m, k),
            MatrixFixture::dense(&mut dice, k, n),
        );
        for way in ways() {
            let (_, product) = multiply(&person, &a, &b, way);
            close(&product, &a, &b, &format!("{way} {m}×{k}×{n}"));
        }
    }
}

#[test]
fn matrices_may_lie_anyhow() {
    let person = NODE.person("strided");
    let mut dice = MatrixRng::new(3);
    for _ in 0..drawn() {
        let [m, k, n] = [90, 70, 80].map(|most| 1 + dice.below(most));
        let (a, b) = (
            MatrixFixture::anyhow(&mut dice, m, k),
            MatrixFixture::anyhow(&mut dice, k, n),
        );
        for way in ways() {
            let (_, product) = multiply(&person, &a, &b, way);
            let what = format!("{way} {m}×{k}×{n}, {:?} {:?}", a.strides, b.strides);
            close(&product, &a, &b, &what);
        }
    }
}

#[test]
fn a_product_without_elements_has_none_and_one_without_terms_is_zero() {
    let person = NODE.person("empty");
    let mut dice = MatrixRng::new(4);
    for [m, k, n] in [[0, 3, 4], [3, 4, 0], [0, 0, 0], [3, 0, 4]] {
        let (a, b) = (
            MatrixFixture::dense(&mut dice, m, k),
            MatrixFixture::dense(&mut dice, k, n),
        );
        for way in ways() {
            let (_, product) = multiply(&person, &a, &b, way);
            assert_eq!(product, vec![0.0; m * n], "{way} {m}×{k}×{n}");
        }
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let person = NODE.person("misfits");
    let matrix =
        |rows: usize, columns: usize| inline("F32", &[rows, columns], &vec![0; rows * columns * 4]);
    let shape = ("INVALID_INPUT".to_owned(), "E_SHAPE".to_owned());
    let cases = [
        json!({ "a": matrix(2, 3), "b": matrix(2, 3) }),
        json!({ "a": inline("F32", &[6], &[0; 24]), "b": matrix(3, 2) }),
        json!({ "a": matrix(2, 3), "b": matrix(3, 2),
                "a_view": { "offset": 1, "shape": [2, 3], "strides": [3, 1] } }),
        json!({ "a": matrix(2, 3), "b": matrix(3, 2),
                "a_view": { "shape": [2, 3], "strides": [i64::MAX, i64::MIN] } }),
        json!({ "a": matrix(2, 3), "b": matrix(3, 2),
                "b_view": { "offset": u64::MAX, "shape": [3, 2], "strides": [2, 1] } }),
        json!({ "a": matrix(1, 1), "b": matrix(1, 1),
                "a_view": { "shape": [1 << 21, 1], "strides": [0, 0] } }),
    ];
    for way in ways() {
        for case in &cases {
            let mut case = case.clone();
            case["variant"] = (*way).into();
            assert_eq!(person.refused("compute/matmul", &case), shape, "{case}");
        }
    }
    let ints = inline("I32", &[1, 1], &[0; 4]);
    let case = json!({ "a": ints, "b": matrix(1, 1) });
    let dtype = ("INVALID_INPUT".to_owned(), "E_DTYPE".to_owned());
    assert_eq!(person.refused("compute/matmul", &case), dtype);
    // Two small tensors that make a large one.
    let view = json!({ "shape": [1 << 20, 1], "strides": [0, 0] });
    let across = json!({ "shape": [1, 1 << 20], "strides": [0, 0] });
    let case = json!({ "a": matrix(1, 1), "b": matrix(1, 1), "a_view": view, "b_view": across });
    let (code, inside) = person.refused("compute/matmul", &case);
    assert_eq!(
        (code.as_str(), inside.as_str()),
        ("TENSOR_TOO_LARGE", "E_TOO_LARGE")
    );
}

#[test]
fn the_answer_says_which_way_was_taken() {
    let person = NODE.person("chosen");
    let mut dice = MatrixRng::new(5);
    let (a, b) = (
        MatrixFixture::dense(&mut dice, 8, 8),
        MatrixFixture::dense(&mut dice, 8, 8),
    );
    let (answer, _) = multiply(&person, &a, &b, "host");
    assert_eq!(answer.value()["variant"], "host");
    assert_eq!(answer.value()["chosen"], "asked");
    let (answer, _) = multiply(&person, &a, &b, "auto");
    assert!(
        ["class", "measured"]
            .map(Value::from)
            .contains(&answer.value()["chosen"])
    );
    let informed = person.ask("compute/info", &json!({ "probe": true }));
    let measured = informed.value()["measured"].clone();
    assert!(
        measured["matmul_host"].as_f64().expect("measured") > 0.0,
        "{measured}"
    );
    // Never measured at this size: the probe decides.
    let (a, b) = (
        MatrixFixture::dense(&mut dice, 2, 90),
        MatrixFixture::dense(&mut dice, 90, 180),
    );
    let (answer, _) = multiply(&person, &a, &b, "auto");
    if let Err(why) = adapter() {
        skip!(
            "Vulkan adapter",
            "only the host is chosen and measured: {why}"
        );
    }
    assert_eq!(answer.value()["chosen"], "measured");
    assert!(
        measured["matmul_wgsl"].as_f64().expect("measured") > 0.0,
        "{measured}"
    );
}

#[test]
fn what_was_measured_is_known_after_a_restart() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state/measured.json");
    let settings = || {
        let mut settings = patient();
        settings.measured = Some(file.clone());
        settings
    };
    let one = inline("F32", &[1, 1], &le(&[3.0]));
    let input = json!({ "a": one, "b": one });
    let chosen = |node: &GpuTestNode| {
        let answer = node.person("again").ask("compute/matmul", &input);
        answer.value()["chosen"].clone()
    };
    let before = GpuTestNode::start(settings(), |_| {});
    assert_eq!(chosen(&before), "class");
    (before.person("again")).ask("compute/info", &json!({ "probe": true }));
    eventually("the measurements are written", LONG, || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("matmul_host"))
    });
    let after = GpuTestNode::start(settings(), |_| {});
    assert_eq!(chosen(&after), "measured");
    let threads = settings().threads + 1;
    let mut others = settings();
    others.threads = threads;
    assert_eq!(chosen(&GpuTestNode::start(others, |_| {})), "class");
}

#[test]
fn products_are_numpys() {
    let packages = std::env::var_os(PACKAGES_VARIABLE).unwrap_or_else(|| {
        panic!("{PACKAGES_VARIABLE} is not set; run these tests with `cargo xtask test`")
    });
    let person = NODE.person("numpy");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("numpy");
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).expect("writable");
    let mut dice = MatrixRng::new(6);
    let mut cases = Vec::new();
    for _ in 0..drawn() {
        let [m, k, n] = [120, 90, 110].map(|most| dice.below(most));
        let (a, b) = (
            MatrixFixture::anyhow(&mut dice, m, k),
            MatrixFixture::anyhow(&mut dice, k, n),
        );
        for way in ways() {
            let name = cases.len().to_string();
            let (_, product) = multiply(&person, &a, &b, way);
            for (end, floats) in [("a", &a.data), ("b", &b.data), ("c", &product)] {
                fs::write(folder.join(format!("{name}.{end}")), le(floats)).expect("writable");
            }
            cases.push(json!({ "name": name, "a": a.view(), "b": b.view(), "way": way }));
        }
    }
    let list = serde_json::to_string(&cases).expect("JSON");
    fs::write(folder.join("cases.json"), list).expect("writable");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/operations/products.py");
    let output = limited(LONG, "python3")
        .args([&script, &folder])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("timeout is part of every Debian");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let checked = String::from_utf8_lossy(&output.stdout);
    assert_eq!(checked.trim(), format!("{} products", cases.len()));
}
