//! A bundle as it is run.

use std::sync::Arc;

use alknet_runtime::{Code as FailureCode, Failure, Language, ModuleSet, Registration, Work};
use serde_json::Value;

use super::{Bundle, Hash};
use crate::check::imports;
use crate::limits::IMPORT_DEPTH_MAX;

/// The code of an operation and where it begins.
#[derive(Clone, Debug)]
pub struct Code {
    /// The bundle's.
    pub id: Hash,
    /// What it is.
    pub spec: Registration,
    /// Every module that it can import.
    pub modules: Arc<ModuleSet>,
    entry: String,
    export: Option<String>,
}

impl Code {
    pub(super) fn new(bundle: &Bundle, modules: ModuleSet) -> Self {
        let content = bundle.content();
        Self {
            id: bundle.id(),
            spec: content.spec.clone(),
            modules: Arc::new(modules),
            entry: content.entry.clone(),
            export: content.export.clone(),
        }
    }

    /// What to do in a fresh engine, in this order; the last one's answer is the operation's.
    #[must_use]
    pub fn steps(&self, input: Value) -> Vec<Work> {
        match &self.export {
            Some(export) => vec![Work::Export {
                module: self.entry.clone(),
                export: export.clone(),
                input,
            }],
            None => vec![
                Work::Module {
                    module: self.entry.clone(),
                },
                Work::Handler {
                    name: self.spec.name.clone(),
                    input,
                },
            ],
        }
    }
}

/// Puts the modules of `bundle` into the set, and the code of promoted operations that they import.
pub(super) fn fill(
    set: &mut ModuleSet,
    bundle: &Bundle,
    imported: &mut dyn FnMut(&str, u64) -> Option<Arc<Bundle>>,
    depth: usize,
) -> Result<(), Failure> {
    for (name, text) in &bundle.content().modules {
        set.insert(name, text.as_str())?;
    }
    let texts = bundle.content().modules.iter();
    for (module, text) in texts {
        fill_imports(set, module, Language::of(module), text, imported, depth)?;
    }
    Ok(())
}

fn fill_imports(
    set: &mut ModuleSet,
    module: &str,
    language: Language,
    text: &str,
    imported: &mut dyn FnMut(&str, u64) -> Option<Arc<Bundle>>,
    depth: usize,
) -> Result<(), Failure> {
    // What cannot be read is told by the check; here it imports nothing.
    for specifier in imports(language, text) {
        let Some((path, version)) = of_operation(&specifier) else {
            continue;
        };
        if set.resolve("", &specifier).is_ok() {
            continue;
        }
        let missing = |why: &str| {
            let text = format!("{specifier:?}, imported by {module:?}, {why}");
            Failure::new(FailureCode::NotFound, text)
        };
        if depth >= IMPORT_DEPTH_MAX {
            return Err(missing("is imported by code that is imported itself too often"));
        }
        let found = imported(path, version).ok_or_else(|| missing("was never promoted"))?;
        let modules = &found.content().modules;
        // Names of files mean nothing outside of their own bundle.
        let (name, text) = match (modules.len(), modules.iter().next()) {
            (1, Some(module)) => module,
            _ => return Err(missing("has several modules; only one can be imported so")),
        };
        let language = Language::of(name);
        set.insert_as(&specifier, text.as_str(), language)?;
        fill_imports(set, &specifier, language, text, imported, depth + 1)?;
    }
    Ok(())
}

/// Path and version of `op:<path>@<version>`.
fn of_operation(specifier: &str) -> Option<(&str, u64)> {
    let (path, version) = specifier.strip_prefix("op:")?.rsplit_once('@')?;
    Some((path, version.parse().ok()?))
}
