//! Compares this crate with Python's `json` on what is JSON and what is an event, for thousands of documents, well
//! formed and spoilt.

use std::io::Write;
use std::process::{Command, Stdio};

use alknet_call::{Envelope, FrameBody};
use serde_json::Value;

/// The number of documents.
const DOCUMENTS: usize = 20_000;
/// The limit of nested arrays and objects; the script has the same number.
const NESTING: usize = 32;

/// Texts about which parsers disagree.
const NASTY: &[&str] = &[
    "NaN",
    "Infinity",
    "-Infinity",
    "nul",
    "True",
    "-",
    "-0",
    "-01",
    "01",
    "1.",
    ".5",
    "+1",
    "0x1",
    "1e",
    "1e+",
    "1E400",
    "-1e-400",
    "123456789012345678901234567890",
    "0.1e1",
    "''",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\u0000\"",
    "\"\\x41\"",
    "\"\\/\"",
    "\"\\u12\"",
    "\"\t\"",
    "\"\u{7f}\"",
    "\"é€😀\"",
    "\\",
    "\"",
    ",",
    ",,",
    ":",
    "[",
    "]",
    "{",
    "}",
    "{}",
    "[]",
    "/**/",
    "//\n",
    "\u{feff}",
    "\u{a0}",
    "\u{0}",
    "\r\n\t ",
    "\"type\":\"x\",",
];

/// Numbers that look random and are the same in every run (xorshift64*).
struct CallTestRng(u64);

impl CallTestRng {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        high as usize % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

fn space(dice: &mut CallTestRng) -> &'static str {
    if dice.one_in(8) {
        dice.pick(&[" ", "\n", "\t", "\r\n", "  "])
    } else {
        ""
    }
}

fn string(dice: &mut CallTestRng) -> String {
    const PARTS: &[&str] = &[
        "a",
        "b",
        "type",
        "id",
        "\\u0061",
        "\\n",
        "\\\"",
        "\\\\",
        "\\/",
        "ä",
        "😀",
        "\\ud83d\\ude00",
        "call.requested",
        "\u{2028}",
    ];
    let parts: String = (0..dice.roll(4)).map(|_| dice.pick(PARTS)).collect();
    format!("\"{parts}\"")
}

fn value(dice: &mut CallTestRng, depth: usize) -> String {
    match dice.roll(if depth == 0 { 4 } else { 7 }) {
        0 => dice.pick(&["null", "true", "false"]).to_owned(),
        1 => dice
            .pick(&[
                "0",
                "-0",
                "7",
                "-12.5",
                "1e9",
                "2E-3",
                "0.0e+0",
                "9007199254740993",
                "1e999",
            ])
            .to_owned(),
        2 | 3 => string(dice),
        4 => {
            let items: Vec<_> = (0..dice.roll(4)).map(|_| value(dice, depth - 1)).collect();
            format!("[{}{}]", space(dice), items.join(","))
        }
        _ => {
            let count = dice.roll(4);
            object(dice, depth - 1, count)
        }
    }
}

fn object(dice: &mut CallTestRng, depth: usize, count: usize) -> String {
    let mut members = Vec::new();
    for n in 0..count {
        // Mostly distinct names; those drawn freely are sometimes the same.
        let name = if dice.one_in(4) {
            string(dice)
        } else {
            format!("\"k{n}\"")
        };
        members.push(format!(
            "{}{name}{}:{}",
            space(dice),
            space(dice),
            value(dice, depth)
        ));
    }
    format!("{{{}}}", members.join(","))
}

/// Arrays within each other, on both sides of the limit.
fn deep(dice: &mut CallTestRng) -> String {
    let levels = NESTING - 3 + dice.roll(5);
    let (open, close) = if dice.one_in(2) {
        ("[", "]")
    } else {
        ("{\"a\":", "}")
    };
    format!("{}0{}", open.repeat(levels), close.repeat(levels))
}

fn event(dice: &mut CallTestRng) -> String {
    const TYPES: &[&str] = &[
        "call.requested",
        "call.responded",
        "call.completed",
        "call.error",
        "call.aborted",
        "call.credit",
        "call.goaway",
        "call.later",
        "call.\\u0065rror",
    ];
    const IDS: &[&str] = &["1", "~1", "-", "a\\\"b", "\\u0041", "", "a b", "ä"];
    let id = match dice.roll(16) {
        0 => "x".repeat(63 + dice.roll(3)),
        roll if roll < 8 => dice.pick(IDS).to_owned(),
        _ => "17".to_owned(),
    };
    let payload = if dice.one_in(12) {
        deep(dice)
    } else {
        value(dice, 4)
    };
    let mut members = vec![
        format!("\"type\":{}\"{}\"", space(dice), dice.pick(TYPES)),
        format!("\"id\"{}:\"{id}\"", space(dice)),
    ];
    if !dice.one_in(8) {
        members.push(format!("\"payload\":{payload}"));
    }
    if dice.one_in(4) {
        members.push(format!("{}:{}", string(dice), value(dice, 2)));
    }
    if dice.one_in(2) {
        let last = members.len() - 1;
        members.swap(dice.roll(last), last);
    }
    format!("{{{}}}{}", members.join(","), space(dice))
}

/// Spoils a document at one point.
fn spoil(dice: &mut CallTestRng, document: &mut Vec<u8>) {
    let at = dice.roll(document.len() + 1);
    let end = (at + dice.roll(4)).min(document.len());
    match dice.roll(6) {
        0 => document.truncate(at),
        1 => drop(document.drain(at..end)),
        2 => drop(document.splice(at..end, dice.pick(NASTY).bytes())),
        3 => drop(document.splice(at..at, dice.pick(NASTY).bytes())),
        4 => {
            let again = document[at..].to_vec();
            document.extend_from_slice(&again);
        }
        _ => {
            if let Some(byte) = document.get_mut(at) {
                *byte = dice.roll(256) as u8;
            }
        }
    }
}

/// The document and this crate's verdict, in the form that the script reads.
fn record(document: &[u8], out: &mut Vec<u8>) {
    let body = FrameBody::parse(document.to_vec().into()).ok();
    let body = body.filter(|body| body.tail.is_none());
    let event = body
        .as_ref()
        .and_then(|body| Envelope::parse(&body.envelope, NESTING).ok());
    let fields = match &event {
        Some(event) => ["1", event.kind.name(), event.id.as_ref(), event.payload],
        None => ["0", "", "", ""],
    };
    for field in std::iter::once(document).chain(fields.map(str::as_bytes)) {
        let len = u32::try_from(field.len()).expect("documents are short");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(field);
    }
}

#[test]
fn python_and_this_crate_agree_on_what_is_an_event() {
    let mut dice = CallTestRng(0x0a1c_5eed);
    let mut records = Vec::new();
    for _ in 0..DOCUMENTS {
        let mut document = event(&mut dice).into_bytes();
        // Well formed, and with one to three mistakes, in equal parts.
        for _ in 0..dice.roll(4) {
            spoil(&mut dice, &mut document);
        }
        record(&document, &mut records);
    }
    let mut python = Command::new("python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/call/against_python.py"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed: it comes with the set-up");
    let mut stdin = python.stdin.take().expect("it was asked for above");
    let feed = std::thread::spawn(move || stdin.write_all(&records));
    let output = python.wait_with_output().expect("it is our child");
    feed.join()
        .expect("no panic")
        .expect("the script reads it all");
    let said = String::from_utf8(output.stdout).expect("JSON");
    let mut lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let last = lines.pop().expect("the script ends with a count");
    assert!(
        lines.is_empty(),
        "{} differences: {:#?}",
        lines.len(),
        &lines[..lines.len().min(9)]
    );
    // Agreement would mean little if all documents had one verdict.
    let accepted = last["accepted"].as_u64().expect("a count") as usize;
    assert!(
        (DOCUMENTS / 10..DOCUMENTS * 4 / 5).contains(&accepted),
        "{accepted}"
    );
}
