//! The kernel has drivers for all hardware that docs and the console's hints mention.

use std::fs;
use std::path::Path;

use super::tree::{root, sources};

/// A driver, and words for its hardware.
const DRIVERS: [(&str, &[&str]); 5] = [
    ("CONFIG_BT=y", &["bluetooth"]),
    ("CONFIG_CFG80211=y", &["wi-fi", "wifi", "wlan"]),
    (
        "CONFIG_MMC_BLOCK=y",
        &["emmc", "mmc", "sd card", "sd cards"],
    ),
    ("CONFIG_USB_STORAGE=y", &["stick", "sticks", "usb"]),
    (
        "CONFIG_VT_CONSOLE=y",
        &[
            "hdmi",
            "keyboard",
            "keyboards",
            "monitor",
            "monitors",
            "screen",
            "screens",
        ],
    ),
];

/// Sentences with such a word that promise nothing about the machine's hardware: they name missing
/// hardware.
const PERMITTED: [&str; 1] = ["wi-fi or an sd card would have passed"];

/// Folders of programs with texts for the owner.
const PROGRAMS: [&str; 3] = ["appliance/", "init/", "provisioning/"];

#[test]
fn docs_and_hints_promise_no_hardware_without_a_driver() {
    let missing = words_without_a_driver(&kernel());
    let mut broken = Vec::new();
    for (path, text) in reader_texts() {
        let text = PERMITTED
            .iter()
            .fold(text, |text, sentence| text.replace(sentence, ""));
        let found = missing.iter().filter(|word| has_word(&text, word));
        broken.extend(found.map(|word| format!("{path}: {word:?}")));
    }
    assert!(broken.is_empty(), "no driver for {broken:#?}");
}

#[test]
fn what_is_permitted_is_said_somewhere() {
    let told = reader_texts();
    for sentence in PERMITTED {
        assert!(
            told.iter().any(|(_, text)| text.contains(sentence)),
            "nothing says {sentence:?}"
        );
    }
}

#[test]
fn hardware_is_found_whatever_the_sentence() {
    let missing = words_without_a_driver("");
    for promise in [
        "Plug in a USB drive.",
        "Attach a monitor, and press a key.",
        "It joins your Wi-Fi.",
        "Write it to an SD\ncard.",
        "A slow bus is that of SCSI, NVMe or MMC.",
        "It boots from eMMC",
        "No stick is needed",
    ] {
        let text = plain(promise);
        assert!(missing.iter().any(|word| has_word(&text, word)), "{text}");
    }
    let text = plain("It monitored sticky screenfuls.");
    assert!(!missing.iter().any(|word| has_word(&text, word)), "{text}");
    let driven = words_without_a_driver("CONFIG_USB_STORAGE=y\n");
    assert!(!driven.contains(&"usb") && driven.contains(&"monitor"));
}

#[test]
fn texts_of_a_source_are_found_without_its_comments() {
    let source = "// \"no\"\nlet a = '\"'; say(\"one \\\"two\\\" \\\n    three\");\n#[cfg(test)]\nmod tests { \"no\" }";
    let texts: Vec<_> = texts(source).iter().map(|text| plain(text)).collect();
    assert_eq!(texts, ["one two three"]);
}

/// Words for hardware without a driver in the configuration.
fn words_without_a_driver(kernel: &str) -> Vec<&'static str> {
    let missing = DRIVERS
        .iter()
        .filter(|(driver, _)| !kernel.lines().any(|line| line == *driver));
    missing.flat_map(|(_, words)| *words).copied().collect()
}

/// All fragments of the kernel's configuration.
fn kernel() -> String {
    let fragments = texts_in("kernel-config", "config");
    fragments.into_iter().map(|(_, text)| text).collect()
}

/// Texts for readers of docs and owners of machines, each with its file: whole pages, and strings
/// of sources.
fn reader_texts() -> Vec<(String, String)> {
    let mut told = texts_in("docs", "md");
    // It contains names of types, which promise nothing.
    told.retain(|(path, _)| !path.ends_with("docs/renames.md"));
    let readme = fs::read_to_string(root().join("README.md")).expect("readable");
    told.push(("README.md".to_owned(), readme));
    let is_of_tests = |path: &str| {
        let path = Path::new(path);
        path.ends_with("tests.rs") || path.iter().any(|part| part == "tests")
    };
    let programs = sources().iter().filter(|source| {
        let is_program = PROGRAMS
            .iter()
            .any(|folder| source.path.starts_with(folder));
        is_program && !is_of_tests(&source.path)
    });
    told.extend(programs.map(|source| (source.path.clone(), texts(&source.text).join("\n"))));
    assert!(told.len() > 100, "{} files", told.len());
    let told = told.into_iter();
    told.map(|(path, text)| (path, plain(&text))).collect()
}

/// Files of a folder with that ending, and their texts.
fn texts_in(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder of this repository") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|it| it == ending) {
            let text = fs::read_to_string(&path).expect("readable");
            found.push((path.display().to_string(), text));
        }
    }
    found
}

/// In lower case, with one space between words, because a sentence may continue on the next line.
fn plain(text: &str) -> String {
    let text = text.to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `text` has that word or phrase as whole words.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Strings of the program in a source, without its comments and its tests.
fn texts(source: &str) -> Vec<String> {
    let mut rest = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let mut texts = Vec::new();
    while let Some(at) = rest.find(['"', '/', '\'']) {
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
        } else if let Some(text) = rest.strip_prefix('"') {
            let (text, next) = up_to_its_end(text);
            texts.push(text);
            rest = next;
        } else {
            // A quotation mark as a character literal begins no string.
            let marks = ["'\"'", "'\\\"'"];
            let mark = marks.iter().find(|mark| rest.starts_with(**mark));
            rest = &rest[mark.map_or(1, |mark| mark.len())..];
        }
    }
    texts
}

/// A string up to its closing quotation mark, with spaces for escapes, and the text after it.
fn up_to_its_end(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut chars = source.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, &source[at + 1..]),
            '\\' => {
                chars.next();
                text.push(' ');
            }
            c => text.push(c),
        }
    }
    (text, "")
}
