//! Between JSON and values.

mod decode;
mod encode;

use serde_json::{Map, Value};

pub(crate) use self::decode::from_json;
pub(crate) use self::encode::to_json;

/// The data that a record refers to and does not contain.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExternalData<'o> {
    /// The bytes that `indirect` fields point into.
    pub region: &'o [u8],
    /// References to tensors, `{"dtype":…,"shape":[…]}`, by the path of their field.
    pub tensors: Option<&'o Map<String, Value>>,
}
