//! A bundle as it is run.

use std::sync::Arc;

use alknet_runtime::{
    IsolateWork, Language, ModuleSet, RuntimeCode as FailureCode, ScriptFailure, ScriptRegistration,
};
use serde_json::Value;

use super::{Blake3Hash, PromotionBundle};
use crate::limits::IMPORT_DEPTH_MAX;

/// The code of an operation and where it begins.
#[derive(Clone, Debug)]
pub struct OperationCode {
    /// The bundle's.
    pub id: Blake3Hash,
    /// What it is.
    pub spec: ScriptRegistration,
    /// Every module that it can import.
    pub modules: Arc<ModuleSet>,
    /// Whether the engine has to freeze its built-in objects first: the modules have several authors.
    pub frozen: bool,
    entry: String,
    export: Option<String>,
    service: bool,
}

/// Export of a service that is called first, with what the code before it left.
const INIT: &str = "init";

impl OperationCode {
    pub(super) fn new(bundle: &PromotionBundle, modules: ModuleSet, frozen: bool) -> Self {
        let content = bundle.content();
        Self {
            id: bundle.id(),
            spec: content.spec.clone(),
            modules: Arc::new(modules),
            frozen,
            entry: content.entry.clone(),
            export: content.export.clone(),
            service: content.service,
        }
    }

    /// What its bundle was proposed by, and its author calls it: without `js/`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The module of a service, and the function of it that answers.
    #[must_use]
    pub fn service(&self) -> Option<(&str, &str)> {
        let export = self.export.as_deref().filter(|_| self.service)?;
        Some((&self.entry, export))
    }

    /// What to do in a fresh engine, in this order; the last one's answer is the operation's.
    #[must_use]
    pub fn steps(&self, input: Value) -> Vec<IsolateWork> {
        let call = |export: &str, input| IsolateWork::Export {
            module: self.entry.clone(),
            export: export.to_owned(),
            input,
        };
        match &self.export {
            Some(export) if self.service => vec![call(INIT, Value::Null), call(export, input)],
            Some(export) => vec![call(export, input)],
            None => vec![
                IsolateWork::Module {
                    module: self.entry.clone(),
                },
                IsolateWork::Handler {
                    name: self.spec.name.clone(),
                    input,
                },
            ],
        }
    }
}

/// A bundle with the promoted code that it imports, by `op:<path>@<version>`.
pub(crate) type Imported = (Arc<PromotionBundle>, Vec<String>);

/// Puts the modules of `bundle` into the set, and the promoted code that is named in `imports`.
pub(super) fn fill(
    set: &mut ModuleSet,
    bundle: &PromotionBundle,
    imports: &[String],
    find: &mut dyn FnMut(&str, u64) -> Option<Imported>,
) -> Result<(), ScriptFailure> {
    for (name, text) in &bundle.content().modules {
        set.insert(name, text.as_str())?;
    }
    fill_imports(set, imports, find, 0)
}

fn fill_imports(
    set: &mut ModuleSet,
    imports: &[String],
    find: &mut dyn FnMut(&str, u64) -> Option<Imported>,
    depth: usize,
) -> Result<(), ScriptFailure> {
    for specifier in imports {
        // Several modules may import the same.
        if set.resolve("", specifier).is_ok() {
            continue;
        }
        let refuse = |why: &str| {
            ScriptFailure::new(
                FailureCode::NotFound,
                format!("the import {specifier:?} {why}"),
            )
        };
        if depth >= IMPORT_DEPTH_MAX {
            return Err(refuse("is that of code that is imported itself too often"));
        }
        let found = of_operation(specifier).and_then(|(path, version)| find(path, version));
        let (bundle, further) = found.ok_or_else(|| refuse("was never promoted"))?;
        let modules = &bundle.content().modules;
        // Names of files mean nothing outside of their own bundle.
        let (1, Some((name, text))) = (modules.len(), modules.iter().next()) else {
            return Err(refuse("has several modules; only one can be imported so"));
        };
        set.insert_as(specifier, text.as_str(), Language::from_specifier(name))?;
        fill_imports(set, &further, find, depth + 1)?;
    }
    Ok(())
}

/// Path and version of `op:<path>@<version>`.
fn of_operation(specifier: &str) -> Option<(&str, u64)> {
    let (path, version) = specifier.strip_prefix("op:")?.rsplit_once('@')?;
    Some((path, version.parse().ok()?))
}
