//! `[promotion]`: how scripts become operations of the node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable};
use super::values::ConfigDiagnostic;

/// Most reviewers that can be asked for.
const REVIEWS_MAX: u32 = 16;

/// `[promotion]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromotionSection {
    /// When what was promoted or taken back takes its place.
    pub activate: Activation,
    /// Reviewers that have to agree.
    #[schemars(range(min = 1, max = 16))]
    pub reviews: u32,
    /// Whether the node takes a version back whose first calls fail too often, without an administrator's word.
    pub rollback_on_errors: bool,
}

impl Default for PromotionSection {
    fn default() -> Self {
        Self {
            activate: Activation::default(),
            reviews: 1,
            rollback_on_errors: false,
        }
    }
}

/// When promotions take their place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// When the node starts next.
    #[default]
    Boot,
    /// At once.
    Live,
}

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> PromotionSection {
    let standard = PromotionSection::default();
    let activate = section.key("activate");
    let reviews = section.key("reviews");
    let rollback = section.key("rollback_on_errors");
    section.finish(notes);
    let activate = activate.and_then(|value| value.parsed(notes, activation));
    let reviews = reviews.and_then(|value| value.number(1..=REVIEWS_MAX, notes));
    let rollback = rollback.and_then(|value| value.bool(notes));
    PromotionSection {
        activate: activate.unwrap_or(standard.activate),
        reviews: reviews.unwrap_or(standard.reviews),
        rollback_on_errors: rollback.unwrap_or(standard.rollback_on_errors),
    }
}

fn activation(text: &str) -> Result<Activation, ConfigDiagnostic> {
    match text {
        "boot" => Ok(Activation::Boot),
        "live" => Ok(Activation::Live),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no moment", quote(text)),
            "write \"boot\" or \"live\"".to_owned(),
        )),
    }
}
