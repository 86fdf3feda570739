//! A script's file with the files that it imports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::CommandError;
use super::super::call::{read_file, read_stdin};

/// What standard input is called.
const STDIN_MODULE: &str = "./main.ts";
/// Endings of files that a script imports; one that names none finds these.
const ENDINGS: [&str; 6] = [".js", ".ts", ".tsx", ".jsx", ".mjs", ".mts"];
/// As many modules as a session may have.
const MODULES_MAX: usize = alknet_runtime::limits::MODULES;

/// Modules by their specifier within the bundle, and the first of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JsBundle {
    pub(super) modules: BTreeMap<String, String>,
    pub(super) main: String,
}

impl JsBundle {
    /// The file and, from its folder, what it and they name: nothing beside or above it is sent.
    pub(super) fn read(file: &str) -> Result<Self, CommandError> {
        if file == "-" {
            let text = text(read_stdin()?, "standard input")?;
            let main = STDIN_MODULE.to_owned();
            return Ok(Self {
                modules: BTreeMap::from([(main.clone(), text)]),
                main,
            });
        }
        let path = Path::new(file);
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| CommandError::usage(format!("'{file}' names no file")))?;
        let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let main = format!("./{name}");
        let mut modules = BTreeMap::new();
        let mut waiting = vec![main.clone()];
        while let Some(specifier) = waiting.pop() {
            if modules.contains_key(&specifier) {
                continue;
            }
            if modules.len() >= MODULES_MAX {
                return Err(CommandError::usage(format!(
                    "more than {MODULES_MAX} modules"
                )));
            }
            let path = folder.join(specifier.trim_start_matches("./"));
            let shown = path.display().to_string();
            let text = text(read_file(&shown)?, &shown)?;
            let named = names(&text).filter_map(|name| resolve(&folder, &specifier, name));
            waiting.extend(named);
            modules.insert(specifier, text);
        }
        Ok(Self { modules, main })
    }
}

fn text(bytes: Vec<u8>, shown: &str) -> Result<String, CommandError> {
    String::from_utf8(bytes).map_err(|_| CommandError::usage(format!("{shown} is no UTF-8")))
}

/// Every text between quotes that looks like a neighbour's name. A comment may name a file too: one
/// more is sent, and nothing imports it.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.match_indices(['"', '\'']).filter_map(|(at, quote)| {
        let rest = &text[at + 1..];
        let end = rest.find(quote)?;
        Some(&rest[..end])
    });
    // A name without a dot is a module that the node has.
    quoted.filter(|name| name.starts_with("./") || name.starts_with("../"))
}

/// The file of the bundle that `name` means in `base`, if there is one. As the engine does it:
/// `./x.js` finds `./x.ts`, too.
fn resolve(folder: &Path, base: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = base.trim_start_matches("./").split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "." | "" => {}
            // Above the folder of the main module nothing is sent.
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    let full = parts.join("/");
    // TypeScript's sources name the module that will be made, `x.js`, where `x.ts` lies.
    let stem = full.strip_suffix(".js").map(ToOwned::to_owned);
    let others = ENDINGS
        .iter()
        .filter_map(|end| Some(format!("{}{end}", stem.as_ref()?)));
    let mut candidates = std::iter::once(full.clone()).chain(others);
    let known = |name: &String| ENDINGS.iter().any(|end| name.ends_with(end));
    let is_file = |name: &String| PathBuf::from(folder).join(name).is_file();
    let found = candidates.find(|name| known(name) && is_file(name));
    found.map(|name| format!("./{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_what_is_imported_and_nothing_from_above() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = folder.path().join("app");
        std::fs::create_dir_all(inside.join("lib")).expect("a folder");
        for (name, text) in [
            (
                "app/main.ts",
                "import a from './lib/a.js'; import '../secret.js'; import 'alknet:core/ujsx';",
            ),
            (
                "app/lib/a.ts",
                "export * from \"../b.js\"; await import('./c.tsx'); import './gone.js'",
            ),
            ("app/b.js", "import './main.ts'"),
            ("app/lib/c.tsx", ""),
            ("app/unused.js", ""),
            ("secret.js", ""),
        ] {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let main = inside.join("main.ts");
        let bundle = JsBundle::read(main.to_str().expect("UTF-8")).expect("a bundle");
        assert_eq!(bundle.main, "./main.ts");
        let names: Vec<&String> = bundle.modules.keys().collect();
        assert_eq!(names, ["./b.js", "./lib/a.ts", "./lib/c.tsx", "./main.ts"]);
        let none = inside.join("none.js");
        assert!(JsBundle::read(none.to_str().expect("UTF-8")).is_err());
        assert!(JsBundle::read("/").is_err());
    }
}
