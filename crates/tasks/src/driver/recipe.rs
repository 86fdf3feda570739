//! `compute/driver/drivers.toml`: the drivers, and how each is made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The word for no driver at all.
const NONE: &str = "none";

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriverRecipes {
    pub(super) llvm: LlvmRecipe,
    pub(super) mesa: MesaRecipe,
    #[serde(rename = "driver")]
    pub(super) drivers: Vec<DriverRecipe>,
}

/// The LLVM that the set-up installs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LlvmRecipe {
    pub(super) version: String,
    /// The program that prints LLVM's paths.
    pub(super) config: String,
    pub(super) components: Vec<String>,
}

/// What all drivers' builds share.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MesaRecipe {
    pub(super) options: Vec<String>,
}

/// One driver.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriverRecipe {
    pub(super) name: String,
    /// The shared library that Mesa would build. Our archive has the objects of that library.
    pub(super) target: String,
    pub(super) options: Vec<String>,
    /// Names of files in `compute/driver/patches`, in order.
    pub(super) patches: Vec<String>,
    pub(super) llvm: bool,
    pub(super) libdrm: bool,
}

impl DriverRecipes {
    /// The recipes of this clone.
    pub(super) fn own() -> Result<Self, String> {
        Self::parse(include_str!("../../../../compute/driver/drivers.toml"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| format!("compute/driver/drivers.toml: {error}"))
    }

    fn find(&self, name: &str) -> Option<&DriverRecipe> {
        self.drivers.iter().find(|driver| driver.name == name)
    }
}

/// The requested drivers, in the order of `drivers.toml`, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverSelection(Vec<String>);

impl DriverSelection {
    /// The default of the command line: a processor can compute anywhere, but the driver is built
    /// for x86-64 only.
    pub fn usual() -> Self {
        if cfg!(target_arch = "x86_64") {
            Self(vec!["llvmpipe".to_owned()])
        } else {
            Self(Vec::new())
        }
    }

    /// No driver at all.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for DriverSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(NONE);
        }
        f.write_str(&self.0.join(","))
    }
}

impl FromStr for DriverSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self(Vec::new()));
        }
        let recipes = DriverRecipes::own()?;
        let requested: Vec<&str> = text.split(',').collect();
        for name in &requested {
            if recipes.find(name).is_none() {
                let known = recipes.drivers.iter().map(|driver| driver.name.as_str());
                let known: Vec<_> = known.chain([NONE]).collect();
                return Err(format!("no driver \"{name}\", only {}", known.join(", ")));
            }
        }
        // The names have the order of the recipes, so that two spellings of one choice make one
        // program.
        let names = recipes.drivers.iter().map(|driver| driver.name.clone());
        Ok(Self(
            names
                .filter(|name| requested.contains(&name.as_str()))
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn drivers_are_chosen_by_name_in_any_order() {
        let parse = |text: &str| text.parse::<DriverSelection>();
        let both = parse("v3dv,llvmpipe,v3dv").expect("both are known");
        assert_eq!(both.to_string(), "llvmpipe,v3dv");
        assert_eq!(parse("none").expect("a word").names(), [""; 0]);
        assert_eq!(parse("none").expect("a word").to_string(), "none");
        let error = parse("llvmpipe,nvidia").expect_err("it does not exist");
        assert!(
            error.contains("nvidia") && error.contains("panvk"),
            "{error}"
        );
        assert!(parse("").is_err() && parse("none,llvmpipe").is_err());
    }

    #[test]
    fn the_usual_selection_is_one_that_could_be_asked_for() {
        let usual = DriverSelection::usual();
        assert_eq!(usual.to_string().parse(), Ok(usual));
    }

    #[test]
    fn every_patch_is_used_and_says_why() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../compute/driver/patches");
        let there: BTreeSet<String> = std::fs::read_dir(&folder)
            .expect("the folder is there")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".patch").map(str::to_owned))
            .collect();
        let recipes = DriverRecipes::own().expect("it parses");
        let used: BTreeSet<String> = recipes
            .drivers
            .iter()
            .flat_map(|driver| driver.patches.clone())
            .collect();
        assert_eq!(there, used);
        for name in there {
            let text = std::fs::read_to_string(folder.join(format!("{name}.patch")));
            let text = text.expect("readable");
            let reason = text.split("\ndiff ").next().unwrap_or_default();
            assert!(reason.trim().ends_with('.') && reason.len() > 40, "{name}");
        }
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let text = include_str!("../../../../compute/driver/drivers.toml");
        let error = DriverRecipes::parse(&text.replace("libdrm =", "libdrn ="));
        assert!(error.is_err_and(|error| error.contains("libdrn")));
    }
}
