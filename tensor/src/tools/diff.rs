//! `diff`: the steps from a file's tensors to those of another.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::header::{Meta, Tensor, TensorKind};
use crate::layout::StructField;

/// The kind of a [`DiffChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only the second file has it.
    Add,
    /// Only the first file has it.
    Remove,
    /// It has another number or arrangement of elements.
    Reshape,
    /// It has another type or kind, or a field has another offset in its record.
    Retype,
}

/// One step from the first file to the second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffChange {
    /// The kind of the step.
    pub op: ChangeKind,
    /// A tensor, or `TENSOR#FIELD`.
    pub path: String,
    /// Its description in the first file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its description in the second file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// The steps: removals in the order of the first file, then the others in the order of the second.
/// Only headers are compared; files without a step between them may hold different values.
#[must_use]
pub fn diff(first: &Meta, second: &Meta) -> Vec<DiffChange> {
    let (before, after) = (shapes(first), shapes(second));
    let known: BTreeMap<&str, &TensorSummary> = before.iter().map(|it| (&*it.name, it)).collect();
    let later: BTreeMap<&str, &TensorSummary> = after.iter().map(|it| (&*it.name, it)).collect();
    let gone = before.iter().filter(|it| !later.contains_key(&*it.name));
    let mut changes: Vec<DiffChange> = gone.map(|it| it.change(ChangeKind::Remove)).collect();
    for shape in &after {
        match known.get(&*shape.name) {
            None => changes.push(shape.change(ChangeKind::Add)),
            Some(old) => compare(old, shape, &mut changes),
        }
    }
    changes
}

/// The properties of a tensor that are compared.
struct TensorSummary {
    name: String,
    what: String,
    dims: String,
    /// Paths with the type and offset of each field.
    fields: Vec<(String, String)>,
}

impl TensorSummary {
    fn text(&self) -> String {
        format!("{} {}", self.what, self.dims)
    }

    fn change(&self, op: ChangeKind) -> DiffChange {
        let text = Some(self.text());
        let (from, to) = match op {
            ChangeKind::Remove => (text, None),
            _ => (None, text),
        };
        DiffChange {
            op,
            path: self.name.clone(),
            from,
            to,
        }
    }
}

fn shapes(meta: &Meta) -> Vec<TensorSummary> {
    meta.tensors().map(|tensor| shape(&tensor)).collect()
}

fn shape(tensor: &Tensor<'_>) -> TensorSummary {
    let entry = tensor.entry();
    let (what, dims, fields) = match tensor.kind() {
        TensorKind::Flat => {
            let dims = format!("{:?}", entry.shape());
            (entry.dtype().to_string(), dims, Vec::new())
        }
        TensorKind::Struct(records) => (
            // A change of the stride shows in the fields as well, except for gaps at the end of a
            // record.
            format!("struct of {} bytes", records.stride()),
            format!("[{}]", records.count()),
            records
                .fields()
                .map(|field| (field.path.to_string(), field_text(&field)))
                .collect(),
        ),
        TensorKind::Blob(blob) => {
            let what = format!("blob of {}", blob.enc());
            (what, format!("[{}]", blob.count()), Vec::new())
        }
    };
    TensorSummary {
        name: tensor.name().to_owned(),
        what,
        dims,
        fields,
    }
}

fn field_text(field: &StructField<'_>) -> String {
    let (kind, off) = (field.kind.name(), field.off);
    match field.len {
        1 => format!("{kind} at {off}"),
        len => format!("{kind}[{len}] at {off}"),
    }
}

fn compare(old: &TensorSummary, new: &TensorSummary, changes: &mut Vec<DiffChange>) {
    let both = |op| DiffChange {
        op,
        path: new.name.clone(),
        from: Some(old.text()),
        to: Some(new.text()),
    };
    // The descriptions have the dimensions too, so one step covers a change of both.
    if old.what != new.what {
        changes.push(both(ChangeKind::Retype));
    } else if old.dims != new.dims {
        changes.push(both(ChangeKind::Reshape));
    }
    let field = |op, path: &str, from: Option<&String>, to: Option<&String>| DiffChange {
        op,
        path: format!("{}#{path}", new.name),
        from: from.cloned(),
        to: to.cloned(),
    };
    let fields_of = |shape: &TensorSummary| -> BTreeMap<String, String> {
        shape.fields.iter().cloned().collect()
    };
    let (before, after) = (fields_of(old), fields_of(new));
    let gone = old.fields.iter().filter(|it| !after.contains_key(&it.0));
    changes.extend(gone.map(|(path, was)| field(ChangeKind::Remove, path, Some(was), None)));
    for (path, is) in &new.fields {
        match before.get(path) {
            None => changes.push(field(ChangeKind::Add, path, None, Some(is))),
            Some(was) if was != is => {
                changes.push(field(ChangeKind::Retype, path, Some(was), Some(is)));
            }
            Some(_) => {}
        }
    }
}
