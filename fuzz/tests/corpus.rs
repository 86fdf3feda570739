//! The corpus, checked against the promises of the fuzz targets: every input, and shortened forms of it.

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use alknet_fuzz::{FuzzTarget, TARGETS};

/// The number of shorter forms of an input to try; all of them where it is no longer.
const CUTS: usize = 400;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The files in `folder`, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|e| e.expect("readable").path()).collect();
    files.sort();
    files
}

/// Names the input that breaks a promise.
fn run(target: &FuzzTarget, input: &[u8], path: &Path, what: &str) -> bool {
    panic::catch_unwind(|| (target.run)(input)).unwrap_or_else(|_| {
        panic!("{}: {} of {what}", target.name, path.display());
    })
}

#[test]
fn the_corpus_holds() {
    for target in TARGETS {
        let (mut taken, mut refused) = (0, 0);
        for path in files(&folder("corpus").join(target.name)) {
            let input = fs::read(&path).expect("readable");
            match run(target, &input, &path, "the whole") {
                true => taken += 1,
                false => refused += 1,
            }
            let step = input.len() / CUTS + 1;
            for end in (0..input.len()).step_by(step) {
                run(target, &input[..end], &path, &format!("{end} bytes"));
            }
        }
        // A corpus with one answer only leaves half of the parser untested.
        assert!(
            taken > 0 && refused > 0,
            "{}: {taken} {refused}",
            target.name
        );
    }
}

#[test]
fn every_target_has_its_engine_and_its_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let stems = |folder: &Path| -> BTreeSet<String> {
        let stem = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        files(folder).iter().filter_map(stem).collect()
    };
    assert_eq!(stems(&folder("targets")), names);
    assert_eq!(stems(&folder("corpus")), names);
    let manifest = fs::read_to_string(folder("Cargo.toml")).expect("readable");
    for name in &names {
        assert!(
            manifest.contains(&format!("\"targets/{name}.rs\"")),
            "{name}"
        );
    }
}
