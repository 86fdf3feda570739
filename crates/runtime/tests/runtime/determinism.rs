//! The same specification, input and replies give the same bytes and take the same fuel.

use std::sync::Arc;

use alknet_runtime::{Isolate, IsolateSpec, IsolateWork, ModuleSet, RecordedCall, Replay};
use alknet_test_support::is_campaign;
use serde_json::{Value, json};

use crate::support::{RecordingHost, spec, value};

const SOURCE: &str = "
    import { signal, computed } from 'alknet:core/signals';
    const seen = [Math.random(), Date.now(), Math.sin(1e6), 1.1 ** 3.3, 0.1 + 0.2];
    const n = signal(1);
    const twice = computed(() => n.value * 2);
    for (let i = 0; i < 5000; i++) n.value = i;
    seen.push(twice.value);
    const calls = [3, 1, 2].map((k) => ops.call('slow', k).then((v) => seen.push(v)));
    setTimeout(() => seen.push('timer'), 10);
    await Promise.all(calls);
    await new Promise((r) => setTimeout(r, 20));
    seen.push(Object.keys({ b: 1, a: 2, 1: 3 }), [3, 1, 2, 10].sort(), [...crypto.getRandomValues(new Uint8Array(4))]);
    export default seen;";

fn replay() -> (Vec<u8>, u64) {
    let record: Vec<RecordedCall> = (1..=3)
        .map(|k| RecordedCall {
            path: "slow".into(),
            input: json!(k),
            output: Some(json!(k * 10)),
            bytes: None,
            error: None,
        })
        .collect();
    let mut set = ModuleSet::new();
    set.insert("./main.js", SOURCE).expect("a module");
    let spec = IsolateSpec::new(set).deterministic([9; 32], 5_000);
    let host = Arc::new(Replay::new(&record, Arc::new(RecordingHost::default())));
    let mut isolate = Isolate::open(spec, host).expect("an isolate");
    let outcome = crate::support::wait(isolate.run(IsolateWork::Module {
        module: "./main.js".into(),
    }));
    let bytes = outcome.result.expect("an answer").to_string().into_bytes();
    (bytes, outcome.stats.ticks)
}

/// What it comes to on every machine: each run of this test compares its own answer with this one.
const ANSWER: &str = r#"[0.5728268547685844,5000,-0.34999350217129294,1.3696066657894779,0.30000000000000004,9998,30,10,20,"timer",["1","b","a"],[1,10,2,3],[230,239,207,85]]"#;
/// The fuel it takes there.
const TICKS: u64 = 7;

/// Replays in a run of the tests, and the thousand in `cargo xtask soak counts`.
const REPLAYS: [usize; 2] = [100, 1000];

#[test]
fn a_thousand_replays_are_equal_here_and_on_other_machines() {
    for _ in 0..REPLAYS[usize::from(is_campaign())] {
        let (answer, ticks) = replay();
        let answer = String::from_utf8(answer).expect("JSON");
        assert_eq!((answer.as_str(), ticks), (ANSWER, TICKS));
    }
}

#[test]
fn answers_arrive_in_the_order_of_their_calls() {
    let source = "const seen = []; await Promise.all([30, 1, 10].map((n) => ops.call('yields', n).then((v) => seen.push(v)))); export default seen";
    assert_eq!(value(source), json!([30, 1, 10]));
    let mut real = spec(source);
    real.clock = alknet_runtime::SessionTimeSource::System;
    assert_eq!(
        crate::support::outcome(real).0.result,
        Ok(json!([1, 10, 30]))
    );
}

#[test]
fn mathematics_is_one_implementation_everywhere() {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 19] = [
        ("acos", libm::acos),
        ("acosh", libm::acosh),
        ("asin", libm::asin),
        ("asinh", libm::asinh),
        ("atan", libm::atan),
        ("atanh", libm::atanh),
        ("cbrt", libm::cbrt),
        ("cos", libm::cos),
        ("cosh", libm::cosh),
        ("exp", libm::exp),
        ("expm1", libm::expm1),
        ("log", libm::log),
        ("log10", libm::log10),
        ("log1p", libm::log1p),
        ("log2", libm::log2),
        ("sin", libm::sin),
        ("sinh", libm::sinh),
        ("tan", libm::tan),
        ("tanh", libm::tanh),
    ];
    let arguments =
        "Array.from({ length: 2000 }, (_, i) => (i - 1000) * 0.7310585786300049 / (1 + i % 7))";
    let source = format!("
        const bits = (x) => new BigUint64Array(new Float64Array([x]).buffer)[0].toString(16);
        const xs = {arguments};
        const names = 'acos acosh asin asinh atan atanh cbrt cos cosh exp expm1 log log10 log1p log2 sin sinh tan tanh'.split(' ');
        export default [xs.map(bits), ...names.map((n) => xs.map((x) => bits(Math[n](x)))), xs.map((x, i) => bits(Math.abs(x) ** (i / 300))), xs.map((x, i) => bits(Math.atan2(x, i)))];");
    let rows = value(&source);
    let row = |index: usize| -> Vec<f64> {
        let bits = |text: &Value| {
            u64::from_str_radix(text.as_str().expect("bits"), 16).expect("hexadecimal")
        };
        rows[index]
            .as_array()
            .expect("a row")
            .iter()
            .map(|text| f64::from_bits(bits(text)))
            .collect()
    };
    let xs = row(0);
    let same = |name: &str, computed: Vec<f64>, expected: Vec<f64>| {
        for ((x, ours), theirs) in xs.iter().zip(computed).zip(expected) {
            let equal = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
            assert!(equal, "{name}({x}): {ours} and {theirs}");
        }
    };
    for (index, (name, function)) in functions.into_iter().enumerate() {
        same(
            name,
            row(index + 1),
            xs.iter().map(|x| function(*x)).collect(),
        );
    }
    let powers = xs
        .iter()
        .enumerate()
        .map(|(i, x)| libm::pow(x.abs(), i as f64 / 300.0));
    same("pow", row(20), powers.collect());
    let angles = xs
        .iter()
        .enumerate()
        .map(|(i, x)| libm::atan2(*x, i as f64));
    same("atan2", row(21), angles.collect());
}
