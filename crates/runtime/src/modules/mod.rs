//! The modules of a session: a graph that is complete and checked before anything runs.
//!
//! | specifier | what it is |
//! |---|---|
//! | `./x.js` | a file of the session's own bundle, relative to the module that names it |
//! | `alknet:core/x` | embedded in the program |
//! | `op:<path>@<version>` | the code of a promoted operation |
//! | `blob:<hash>` | a source by the BLAKE3 of its text, 64 hexadecimal digits |
//! | anything else | through the session's import map |
//!
//! Nothing is fetched while a script runs: `import()` finds only modules of the set. Sources are
//! text: the engine has no verifier for bytecode, so the set accepts no bytecode from outside.

mod load;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{RuntimeCode, ScriptFailure};
use crate::limits::{MODULES, SOURCE_BYTES};
use crate::typescript::{self, SourceScan};

pub(crate) use load::loader;

/// The modules that are part of the program.
const CORE: [(&str, &str); 8] = [
    ("alknet:core/fs", include_str!("../core/fs.js")),
    ("alknet:core/signals", include_str!("../core/signals.js")),
    ("alknet:core/pubsub", include_str!("../core/pubsub.js")),
    ("alknet:core/logging", include_str!("../core/logging.js")),
    ("alknet:core/ujsx", include_str!("../core/ujsx.js")),
    (
        "alknet:core/json-host",
        include_str!("../core/json-host.js"),
    ),
    (
        "alknet:core/layout-host",
        include_str!("../core/layout-host.js"),
    ),
    ("alknet:core/ops-host", include_str!("../core/ops-host.js")),
];

/// The language of a module.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Language {
    /// JavaScript without types or elements.
    JavaScript,
    /// JavaScript with elements.
    Jsx,
    /// TypeScript whose types can be erased.
    TypeScript,
    /// TypeScript with elements.
    Tsx,
}

impl Language {
    /// The language by the ending of a specifier; JavaScript for an unknown ending.
    #[must_use]
    pub fn from_specifier(specifier: &str) -> Self {
        match specifier.rsplit_once('.').map(|(_, ending)| ending) {
            Some("ts" | "mts") => Self::TypeScript,
            Some("tsx") => Self::Tsx,
            Some("jsx") => Self::Jsx,
            _ => Self::JavaScript,
        }
    }
}

#[derive(Clone, Debug)]
struct Module {
    text: String,
    language: Language,
}

/// The modules that a session may import, by their full specifiers.
#[derive(Clone, Debug, Default)]
pub struct ModuleSet {
    modules: BTreeMap<String, Module>,
    imports: BTreeMap<String, String>,
}

impl ModuleSet {
    /// A set with only the embedded modules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a module in the language of its ending.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] for a specifier of an unknown form, a text that is too long or contains a NUL, a
    /// `blob:` whose text has another hash, and too many modules.
    pub fn insert(
        &mut self,
        specifier: &str,
        text: impl Into<String>,
    ) -> Result<(), ScriptFailure> {
        self.insert_as(specifier, text, Language::from_specifier(specifier))
    }

    /// Adds a module in a language that its specifier does not name.
    ///
    /// # Errors
    /// The errors of [`insert`](Self::insert).
    pub fn insert_as(
        &mut self,
        specifier: &str,
        text: impl Into<String>,
        language: Language,
    ) -> Result<(), ScriptFailure> {
        let text = text.into();
        let refuse = |why: &str| {
            Err(ScriptFailure::new(
                RuntimeCode::Limit,
                format!("{specifier:?}: {why}"),
            ))
        };
        if !known_form(specifier) {
            return refuse("a specifier begins with ./, op: or blob:");
        }
        if text.len() > SOURCE_BYTES {
            return refuse("the source is longer than 1 MiB");
        }
        // The id of a promoted bundle separates the texts of its modules by a zero byte.
        if text.contains('\0') {
            return refuse("the source has a NUL character");
        }
        if let Some(hash) = specifier.strip_prefix("blob:")
            && blake3::hash(text.as_bytes()).to_hex().as_str() != hash
        {
            return refuse("the text has another hash");
        }
        // Replacing a module does not increase the number.
        if self.modules.len() >= MODULES && !self.modules.contains_key(specifier) {
            return refuse("a session has at most 256 modules");
        }
        self.modules
            .insert(specifier.to_owned(), Module { text, language });
        Ok(())
    }

    /// Lets modules import `specifier` as `name`.
    pub fn map(&mut self, name: impl Into<String>, specifier: impl Into<String>) {
        self.imports.insert(name.into(), specifier.into());
    }

    /// The added modules in the order of their specifiers, with text and language.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str, Language)> {
        let modules = self.modules.iter();
        modules.map(|(name, module)| (name.as_str(), module.text.as_str(), module.language))
    }

    /// The names that [`map`](Self::map) added, with their specifiers.
    pub fn imports(&self) -> impl Iterator<Item = (&str, &str)> {
        let imports = self.imports.iter();
        imports.map(|(name, full)| (name.as_str(), full.as_str()))
    }

    /// The full specifier of `name` in the module `base`.
    ///
    /// # Errors
    /// [`RuntimeCode::NotFound`] if the set has no such module.
    pub fn resolve(&self, base: &str, name: &str) -> Result<String, ScriptFailure> {
        let full = match self.imports.get(name) {
            Some(full) => Some(full.clone()),
            None if name.starts_with("./") || name.starts_with("../") => relative(base, name),
            // Any other name must be a full specifier, such as one with `op:` or `blob:`.
            None => Some(name.to_owned()),
        };
        let found = full.and_then(|full| self.find(full));
        found.ok_or_else(|| {
            let text = format!("{name:?}, imported by {base:?}, is not in the session's modules");
            ScriptFailure::new(RuntimeCode::NotFound, text)
        })
    }

    /// The text to compile.
    ///
    /// # Errors
    /// [`RuntimeCode::TsUnsupported`] and [`RuntimeCode::Limit`], with the module and the line.
    pub fn source(&self, specifier: &str) -> Result<String, ScriptFailure> {
        // The embedded modules are JavaScript, so nothing is erased from them.
        if let Some((_, text)) = CORE.iter().find(|(name, _)| *name == specifier) {
            return Ok((*text).to_owned());
        }
        let Some(module) = self.modules.get(specifier) else {
            return Err(ScriptFailure::new(
                RuntimeCode::NotFound,
                format!("no module {specifier:?}"),
            ));
        };
        match module.language {
            Language::JavaScript => Ok(module.text.clone()),
            language => typescript::strip(specifier, &module.text, language),
        }
    }

    /// The scan of each added module, which runs no code: see [`scan_source`].
    ///
    /// [`scan_source`]: crate::scan_source
    pub fn scan_all(&self) -> impl Iterator<Item = (&str, Result<SourceScan, ScriptFailure>)> {
        self.modules.iter().map(|(name, module)| {
            let scan = typescript::scan_source(name, &module.text, module.language);
            (name.as_str(), scan)
        })
    }

    fn find(&self, full: String) -> Option<String> {
        let known = |name: &str| {
            self.modules.contains_key(name) || CORE.iter().any(|(core, _)| *core == name)
        };
        if known(&full) {
            return Some(full);
        }
        // By the convention of TypeScript, `./x.js` names the file that `./x.ts` becomes.
        let stem = full.strip_suffix(".js")?;
        let written = [".ts", ".tsx", ".jsx"].map(|ending| format!("{stem}{ending}"));
        written.into_iter().find(|name| known(name))
    }
}

fn known_form(specifier: &str) -> bool {
    let bundle = specifier.starts_with("./")
        && relative("./", specifier).is_some_and(|clean| clean == specifier);
    let promoted = specifier
        .strip_prefix("op:")
        .and_then(|rest| rest.split_once('@'))
        .is_some_and(|(path, version)| !path.is_empty() && !version.is_empty());
    let clean = !specifier.chars().any(char::is_control) && specifier.len() <= 1024;
    clean && (bundle || promoted || specifier.starts_with("blob:"))
}

/// `name` relative to `base`, within the bundle; `None` if it leads out of the bundle.
fn relative(base: &str, name: &str) -> Option<String> {
    let base = if base.is_empty() { "./" } else { base };
    let mut folders: Vec<&str> = base.strip_prefix("./")?.split('/').collect();
    folders.pop();
    for part in name.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                // A path above the bundle's root leads out of the bundle.
                folders.pop()?;
            }
            part => folders.push(part),
        }
    }
    Some(format!("./{}", folders.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ModuleSet {
        let mut set = ModuleSet::new();
        for name in ["./main.js", "./lib/a.js", "./lib/b.ts", "op:js/x@3"] {
            set.insert(name, "").expect("a module");
        }
        set.map("b", "./lib/b.ts");
        set
    }

    #[test]
    fn specifiers_resolve_within_the_set_only() {
        let set = set();
        let resolve = |base: &str, name: &str| set.resolve(base, name).ok();
        assert_eq!(
            resolve("./main.js", "./lib/a.js").as_deref(),
            Some("./lib/a.js")
        );
        assert_eq!(
            resolve("./lib/a.js", "../main.js").as_deref(),
            Some("./main.js")
        );
        assert_eq!(
            resolve("./lib/a.js", "./b.js").as_deref(),
            Some("./lib/b.ts")
        );
        assert_eq!(resolve("op:js/x@3", "b").as_deref(), Some("./lib/b.ts"));
        assert_eq!(resolve("", "./main.js").as_deref(), Some("./main.js"));
        assert_eq!(
            resolve("./main.js", "alknet:core/ujsx").as_deref(),
            Some("alknet:core/ujsx")
        );
        for (base, name) in [
            ("./main.js", "../main.js"),
            ("./main.js", "../../etc/passwd"),
            ("./main.js", "https://example.org/x.js"),
            ("./main.js", "file:///etc/passwd"),
            ("./main.js", "os"),
            ("op:js/x@3", "./main.js"),
            ("./main.js", "alknet:core/secrets"),
        ] {
            assert_eq!(resolve(base, name), None, "{base} {name}");
        }
    }

    #[test]
    fn a_module_is_refused_for_its_name_length_hash_or_number() {
        let mut set = ModuleSet::new();
        let mut refused =
            |name: &str, text: &str| set.insert(name, text).err().map(|failure| failure.code);
        for name in [
            "x.js",
            "/x.js",
            "./../x.js",
            "./a/./x.js",
            "op:x",
            "op:@1",
            "alknet:core/x",
            "./a\n",
        ] {
            assert_eq!(refused(name, ""), Some(RuntimeCode::Limit), "{name}");
        }
        assert_eq!(refused("./long.js", &" ".repeat(SOURCE_BYTES)), None);
        assert_eq!(
            refused("./long.js", &" ".repeat(SOURCE_BYTES + 1)),
            Some(RuntimeCode::Limit)
        );
        assert_eq!(refused("./nul.js", "\0"), Some(RuntimeCode::Limit));
        let hash = blake3::hash(b"1").to_hex();
        assert_eq!(refused(&format!("blob:{hash}"), "1"), None);
        assert_eq!(
            refused(&format!("blob:{hash}"), "2"),
            Some(RuntimeCode::Limit)
        );
        let mut set = ModuleSet::new();
        for index in 0..MODULES {
            set.insert(&format!("./{index}.js"), "")
                .expect("one of 256");
        }
        assert!(set.insert("./more.js", "").is_err());
        assert!(
            set.insert("./0.js", "1").is_ok(),
            "the same again is no further one"
        );
    }
}
