//! The needs of test programs, from `package.metadata.tests` in the manifests of their packages.
//! docs/adding-tests.md has the form.

use std::collections::BTreeMap;
use std::process::Command;

use serde::Deserialize;

use super::metadata;
use super::programs::TestProgram;
use crate::failure::{Result, TaskError};

/// The needs of every program that has any, by package and target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TestNeeds(BTreeMap<(String, String), ProgramNeeds>);

/// The needs of the tests of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProgramNeeds {
    /// Its tests mostly wait: each of its modules runs as its own process.
    pub(super) waits: bool,
    /// No other test may run beside its tests.
    pub(super) alone: bool,
    /// Memory of all machines that one test has at the same time, MiB.
    pub(super) machines_mib: u64,
    /// Modules with other needs. [`TestNeeds::read`] refuses them for a program that does not wait,
    /// because that runs as a whole.
    pub(super) modules: BTreeMap<String, ModuleNeeds>,
}

/// The needs of the tests of one module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ModuleNeeds {
    pub(super) alone: bool,
    /// Replaces the program's.
    pub(super) machines_mib: Option<u64>,
}

impl ProgramNeeds {
    /// Whether no other test may run beside this module.
    pub(super) fn is_alone(&self, module: &str) -> bool {
        self.alone || self.modules.get(module).is_some_and(|it| it.alone)
    }

    /// Memory of all machines that one test of this module has at the same time, MiB.
    pub(super) fn machines_mib(&self, module: &str) -> u64 {
        let own = self.modules.get(module).and_then(|it| it.machines_mib);
        own.unwrap_or(self.machines_mib)
    }
}

#[derive(Deserialize)]
struct CargoMetadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    metadata: Option<PackageMetadata>,
}

#[derive(Deserialize)]
struct PackageMetadata {
    /// By target.
    #[serde(default)]
    tests: BTreeMap<String, ProgramNeeds>,
}

impl TestNeeds {
    /// Reads the needs of every package of the workspace.
    pub(super) fn read(cargo_metadata: &mut Command) -> Result<Self> {
        let needs = Self::of_packages(metadata::read_metadata(cargo_metadata)?);
        needs
            .checked()
            .map_err(|error| TaskError::Workspace(format!("cargo metadata: {error}")))
    }

    fn checked(self) -> std::result::Result<Self, String> {
        let whole = |needs: &ProgramNeeds| !needs.waits && !needs.modules.is_empty();
        match self.0.iter().find(|(_, needs)| whole(needs)) {
            Some(((package, target), _)) => Err(format!(
                "package.metadata.tests.{target} of {package} has `modules` and not `waits`: only programs that wait \
                 run by modules"
            )),
            None => Ok(self),
        }
    }

    #[cfg(test)]
    pub(super) fn from_metadata(json: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        serde_json::from_slice(json).map(Self::of_packages)
    }

    fn of_packages(metadata: CargoMetadata) -> Self {
        let programs = metadata.packages.into_iter().flat_map(|package| {
            let tests = package.metadata.map(|metadata| metadata.tests);
            let tests = tests.into_iter().flatten();
            let name = package.name;
            tests.map(move |(target, needs)| ((name.clone(), target), needs))
        });
        Self(programs.collect())
    }

    pub(super) fn for_program(&self, program: &TestProgram) -> ProgramNeeds {
        let name = (program.package.clone(), program.target.clone());
        self.0.get(&name).cloned().unwrap_or_default()
    }

    /// Names in the manifests that match none of `programs`, which has every test program.
    pub(super) fn unknown(&self, programs: &[TestProgram]) -> Vec<String> {
        let is_known = |(package, target): &(String, String)| {
            let mut all = programs.iter();
            all.any(|it| it.package == *package && it.target == *target)
        };
        let unknown = self.0.keys().filter(|name| !is_known(name));
        unknown
            .map(|(package, target)| format!("{package} {target}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn program(package: &str, target: &str) -> TestProgram {
        TestProgram {
            package: package.to_owned(),
            target: target.to_owned(),
            path: PathBuf::new(),
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn a_module_needs_what_its_program_needs_unless_it_says_otherwise() {
        let json = br#"{"packages": [
            {"name": "plain", "metadata": null},
            {"name": "others", "metadata": {"docs": {}}},
            {"name": "a", "metadata": {"tests": {"machine": {"waits": true, "machines-mib": 512,
                "modules": {"two": {"machines-mib": 1024}, "timing": {"alone": true}}}}}}]}"#;
        let needs = TestNeeds::from_metadata(json).expect("the form of the documentation");
        let machine = needs.for_program(&program("a", "machine"));
        assert!(machine.waits && !machine.is_alone("two") && machine.is_alone("timing"));
        let memory = ["one", "two", "timing"].map(|module| machine.machines_mib(module));
        assert_eq!(memory, [512, 1024, 512]);
        assert_eq!(
            needs.for_program(&program("plain", "lib")),
            ProgramNeeds::default()
        );
        assert_eq!(
            needs.unknown(&[program("a", "machine")]),
            Vec::<String>::new()
        );
        assert_eq!(needs.unknown(&[program("a", "lib")]), ["a machine"]);
    }

    #[test]
    fn only_a_program_that_waits_runs_by_modules() {
        let json = br#"{"packages": [{"name": "a", "metadata": {"tests": {"lib": {"modules": {"b": {}}}}}}]}"#;
        let needs = TestNeeds::from_metadata(json).expect("the form of the documentation");
        let error = needs.checked().expect_err("it does not wait");
        assert!(error.contains("package.metadata.tests.lib of a"), "{error}");
    }

    #[test]
    fn a_need_that_is_spelt_wrong_is_an_error() {
        let json =
            br#"{"packages": [{"name": "a", "metadata": {"tests": {"lib": {"wait": true}}}}]}"#;
        let error = TestNeeds::from_metadata(json)
            .expect_err("no such need")
            .to_string();
        assert!(error.contains("wait"), "{error}");
    }
}
