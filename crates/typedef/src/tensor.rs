//! References to tensors of the same file, and named sizes.

use std::collections::BTreeMap;

use serde_json::Value;

/// The dtypes of safetensors 0.8.
const DTYPES: [&str; 22] = [
    "BF16",
    "BOOL",
    "C64",
    "F16",
    "F32",
    "F4",
    "F64",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E4M3",
    "F8_E4M3FNUZ",
    "F8_E5M2",
    "F8_E5M2FNUZ",
    "F8_E8M0",
    "I16",
    "I32",
    "I64",
    "I8",
    "U16",
    "U32",
    "U64",
    "U8",
];

pub(crate) fn is_dtype(name: &str) -> bool {
    DTYPES.contains(&name)
}

/// One axis of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Of this size.
    Size(u64),
    /// The same size wherever the name occurs in one file.
    Symbol(String),
}

/// A schema's conditions on a tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorType {
    /// Name of its dtype; `None` allows any.
    pub dtype: Option<String>,
    /// Its axes; `None` allows any.
    pub shape: Option<Vec<Dim>>,
}

/// The sizes of names in one file. The first tensor with the name decides.
///
/// ```
/// use alknet_typedef::Dims;
///
/// let mut dims = Dims::new();
/// assert_eq!(dims.bind("batch", 8), 8);
/// // The first tensor decides how large a name is.
/// assert_eq!(dims.bind("batch", 9), 8);
/// assert_eq!(dims.size("batch"), Some(8));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dims(BTreeMap<String, u64>);

impl TensorType {
    /// Checks a tensor of `dtype` and `shape` against this type, with the names of sizes in `dims`.
    ///
    /// # Errors
    /// The fault in words. `dims` then stays as it was.
    pub fn check(&self, dtype: &str, shape: &[u64], dims: &mut Dims) -> Result<(), String> {
        if let Some(wanted) = self.dtype.as_deref().filter(|wanted| *wanted != dtype) {
            return Err(format!("the tensor's dtype is not {wanted}"));
        }
        let Some(wanted) = &self.shape else {
            return Ok(());
        };
        if wanted.len() != shape.len() {
            return Err(format!("the tensor's rank is not {}", wanted.len()));
        }
        // A failed check must bind no name.
        let mut known = dims.clone();
        for (axis, (wanted, size)) in wanted.iter().zip(shape).enumerate() {
            let wanted = match wanted {
                Dim::Size(wanted) => *wanted,
                Dim::Symbol(name) => known.bind(name, *size),
            };
            if wanted != *size {
                return Err(format!("axis {axis} of the tensor is {size}, not {wanted}"));
            }
        }
        *dims = known;
        Ok(())
    }

    /// Like `check`, for a reference in JSON, `{"dtype":…,"shape":[…]}`.
    pub(crate) fn check_json(&self, reference: &Value, dims: &mut Dims) -> Result<(), String> {
        let invalid = || "a reference to a tensor is {\"dtype\":…,\"shape\":[…]}".to_owned();
        let dtype = reference
            .get("dtype")
            .and_then(Value::as_str)
            .ok_or_else(invalid)?;
        let shape = reference
            .get("shape")
            .and_then(Value::as_array)
            .ok_or_else(invalid)?;
        let shape: Option<Vec<u64>> = shape.iter().map(Value::as_u64).collect();
        if !is_dtype(dtype) {
            return Err("no dtype of safetensors has this name".to_owned());
        }
        self.check(dtype, &shape.ok_or_else(invalid)?, dims)
    }

    pub(crate) fn has_symbols(&self) -> bool {
        let mut axes = self.shape.iter().flatten();
        axes.any(|dim| matches!(dim, Dim::Symbol(_)))
    }
}

impl Dims {
    /// An empty set of names.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The size of `name`; `size` becomes it where `name` has none yet.
    pub fn bind(&mut self, name: &str, size: u64) -> u64 {
        if let Some(known) = self.0.get(name) {
            return *known;
        }
        self.0.insert(name.to_owned(), size);
        size
    }

    /// The size of `name`.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_size() {
        let square = TensorType {
            dtype: Some("F32".to_owned()),
            shape: Some(vec![
                Dim::Symbol("N".to_owned()),
                Dim::Symbol("N".to_owned()),
            ]),
        };
        let mut dims = Dims::new();
        assert!(square.check("F32", &[3, 4], &mut dims).is_err());
        assert_eq!(dims, Dims::new(), "what is refused decides nothing");
        assert_eq!(square.check("F32", &[3, 3], &mut dims), Ok(()));
        assert_eq!(dims.size("N"), Some(3));
        let error = square
            .check("F32", &[4, 4], &mut dims)
            .expect_err("another N");
        assert_eq!(error, "axis 0 of the tensor is 4, not 3");
        assert!(square.check("F16", &[3, 3], &mut dims).is_err());
        assert!(square.check("F32", &[3], &mut dims).is_err());
    }
}
