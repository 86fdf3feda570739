//! What goes wrong, by name and exit code.

use std::fs;
use std::io::{self, Write};

use crate::shell::TensorShell;

#[track_caller]
fn refused(shell: &TensorShell, line: &str, code: &str, exit: u8) -> String {
    let (ended, text) = shell.run(line);
    let error = ended.expect_err(line);
    assert_eq!(
        (error.code(), error.exit()),
        (code, exit),
        "{line}: {error}"
    );
    assert_eq!(text, "", "{line}");
    let message = error.message();
    assert!(
        !message.contains('\n') && !message.starts_with(code),
        "{message}"
    );
    message
}

#[test]
fn every_failure_has_its_code() {
    let shell = TensorShell::new();
    shell.sample();
    fs::write(shell.path("short.mt"), [1, 2, 3]).expect("writable");
    fs::write(shell.path("wrong.npy"), "no array at all").expect("writable");
    let said = refused(&shell, "ls /gone.mt", "E_IO", 1);
    assert!(said.starts_with("there is no file"), "{said}");
    assert!(
        said.contains("gone.mt") && said.contains("tensor pull"),
        "{said}"
    );
    fs::write(shell.path("notes.txt"), "words and no tensors").expect("writable");
    fs::write(shell.path("array.npy"), b"\x93NUMPY\x01\x00v\x00{'descr'").expect("writable");
    let said = refused(&shell, "verify /array.npy", "E_HEADER", 2);
    assert!(
        said.contains("array.npy is no tensor file: it is an array of NumPy")
            && !said.contains("bytes"),
        "{said}"
    );
    fs::remove_file(shell.path("array.npy")).expect("just written");
    for (file, code) in [("short.mt", "E_HEADER"), ("notes.txt", "E_LIMIT")] {
        let said = refused(&shell, &format!("ls /{file}"), code, 2);
        assert!(
            said.contains(&format!("{file} is no tensor file: ")),
            "{said}"
        );
    }
    fs::remove_file(shell.path("notes.txt")).expect("just written");
    let said = refused(&shell, "ls /", "USAGE", 2);
    assert!(said.contains("is a folder"), "{said}");
    for (line, code) in [
        ("cat /sample.mt other", "E_NOTFOUND"),
        ("convert /wrong.npy /out.mt", "E_HEADER"),
    ] {
        let said = refused(&shell, line, code, 2);
        let file = line.split(' ').nth(1).unwrap_or_default();
        assert!(said.contains(&format!("{file}: ")), "{said}");
    }
    refused(&shell, "cat /sample.mt weights --rows 1:9", "E_SHAPE", 2);
    refused(
        &shell,
        "cat /sample.mt weights --rows 1:9 --json",
        "E_SHAPE",
        2,
    );
    refused(
        &shell,
        "cat /sample.mt names --rows 1:9 --json",
        "E_SHAPE",
        2,
    );
    refused(&shell, "cat /sample.mt weights --npy --json", "USAGE", 2);
    refused(&shell, "convert /sample.mt /out.txt", "USAGE", 2);
    refused(&shell, "convert /sample.mt /out.npy", "E_SHAPE", 2);
    refused(&shell, "strip /sample.mt /no/folder/out.mt", "E_IO", 1);
    refused(&shell, "pack /sample.mt /out.mt", "E_IO", 1);
    assert_eq!(shell.names(), ["sample.mt", "short.mt", "wrong.npy"]);
}

/// What names in a file say is not what a terminal does.
#[test]
fn names_cannot_speak_to_the_terminal() {
    let shell = TensorShell::new();
    let header = "{\"a\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    fs::write(shell.path("odd.safetensors"), file).expect("writable");
    let text = shell.good("ls /odd.safetensors") + &shell.good("hash /odd.safetensors");
    assert!(
        !text.contains('\u{1b}') && text.contains("\\u{1b}"),
        "{text}"
    );
}

struct FailingOutput(io::ErrorKind);

impl Write for FailingOutput {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let shell = TensorShell::new();
    shell.sample();
    for line in [
        "cat /sample.mt weights",
        "ls /sample.mt",
        "hash /sample.mt --json",
    ] {
        let gone = shell.run_to(line, &mut FailingOutput(io::ErrorKind::BrokenPipe));
        let gone = gone.expect_err("no reader");
        assert_eq!((gone.code(), gone.exit()), ("CLOSED", 0), "{line}");
        let full = shell.run_to(line, &mut FailingOutput(io::ErrorKind::StorageFull));
        let full = full.expect_err("nothing can be written");
        assert_eq!((full.code(), full.exit()), ("LOCAL", 1), "{line}");
    }
}
