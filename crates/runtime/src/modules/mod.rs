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
//! Nothing is fetched while a script runs: `import()` finds what is in the set and nothing else.
//! Sources are text. The engine's bytecode has no verifier, so none is ever taken from outside.

mod load;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{RuntimeCode, ScriptFailure};
use crate::limits::{MODULES, SOURCE_BYTES};
use crate::typescript::{self, SourceScan};

pub(crate) use load::loader;

/// The modules that come with the program.
const CORE: [(&str, &str); 7] = [
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

/// What a module is written in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Language {
    /// Source in JavaScript.
    JavaScript,
    /// JavaScript with elements.
    Jsx,
    /// TypeScript whose types can be erased.
    TypeScript,
    /// The same with elements.
    Tsx,
}

impl Language {
    /// By the ending of a specifier; JavaScript when it says nothing.
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

/// Every module that a session may import, by its full specifier.
#[derive(Clone, Debug, Default)]
pub struct ModuleSet {
    modules: BTreeMap<String, Module>,
    imports: BTreeMap<String, String>,
}

impl ModuleSet {
    /// No module but the embedded ones.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a module, in the language that its ending names.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] for a specifier of no known form, a text that is too long or has a NUL, a
    /// `blob:` whose text has another hash, and one module too many.
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
    /// As [`insert`](Self::insert).
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
        if text.contains('\0') {
            return refuse("the source has a NUL character");
        }
        if let Some(hash) = specifier.strip_prefix("blob:")
            && blake3::hash(text.as_bytes()).to_hex().as_str() != hash
        {
            return refuse("the text has another hash");
        }
        // One that takes the place of another adds none.
        if self.modules.len() >= MODULES && !self.modules.contains_key(specifier) {
            return refuse("a session has at most 256 modules");
        }
        self.modules
            .insert(specifier.to_owned(), Module { text, language });
        Ok(())
    }

    /// Lets modules say `name` for `specifier`.
    pub fn map(&mut self, name: impl Into<String>, specifier: impl Into<String>) {
        self.imports.insert(name.into(), specifier.into());
    }

    /// Every module that was added: specifier, text and language, in order of specifier.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str, Language)> {
        let modules = self.modules.iter();
        modules.map(|(name, module)| (name.as_str(), module.text.as_str(), module.language))
    }

    /// Every name that [`map`](Self::map) made, with what it stands for.
    pub fn imports(&self) -> impl Iterator<Item = (&str, &str)> {
        let imports = self.imports.iter();
        imports.map(|(name, full)| (name.as_str(), full.as_str()))
    }

    /// The full specifier that `name` in module `base` stands for.
    ///
    /// # Errors
    /// [`RuntimeCode::NotFound`] when the set has no such module.
    pub fn resolve(&self, base: &str, name: &str) -> Result<String, ScriptFailure> {
        let full = match self.imports.get(name) {
            Some(full) => Some(full.clone()),
            None if name.starts_with("./") || name.starts_with("../") => relative(base, name),
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
    /// [`RuntimeCode::TsUnsupported`] and [`RuntimeCode::Limit`], with module and line.
    pub fn source(&self, specifier: &str) -> Result<String, ScriptFailure> {
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

    /// What each module that was added says about itself without being run: see [`scan_source`].
    ///
    /// [`scan_source`]: crate::scan_source
    pub fn scan_all(&self) -> impl Iterator<Item = (&str, Result<SourceScan, ScriptFailure>)> {
        self.modules.iter().map(|(name, module)| {
            let looked = typescript::scan_source(name, &module.text, module.language);
            (name.as_str(), looked)
        })
    }

    fn find(&self, full: String) -> Option<String> {
        let known = |name: &str| {
            self.modules.contains_key(name) || CORE.iter().any(|(core, _)| *core == name)
        };
        if known(&full) {
            return Some(full);
        }
        // TypeScript's own habit: `./x.js` names what `./x.ts` will be.
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

/// `name` seen from `base`, within the bundle; `None` when it leads out of it.
fn relative(base: &str, name: &str) -> Option<String> {
    let base = if base.is_empty() { "./" } else { base };
    let mut folders: Vec<&str> = base.strip_prefix("./")?.split('/').collect();
    folders.pop();
    for part in name.split('/') {
        match part {
            "." | "" => {}
            ".." => {
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
