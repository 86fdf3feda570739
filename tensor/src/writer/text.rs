//! The text of the header. Keys have a fixed order, so the same input gives the same bytes.

use std::fmt::Write as _;

use blake3::Hash;

use crate::header::PREFIX_BYTES;
use crate::keys::{DATA_HASH, GPU, INDEX, LEVEL, METADATA, SCHEMA};
use crate::layout::StructField;
use crate::writer::plan::{ContainerPlan, EntryLayout, EntryPart, PlannedKind};

/// The header with its length prefix, padded with spaces so that the data is aligned.
///
/// A hash is as long as the zeros in its place, so filling it in does not change the length.
pub(super) fn header(
    plan: &ContainerPlan<'_>,
    layout: &EntryLayout,
    hashes: &[Hash],
    data: Hash,
) -> Vec<u8> {
    let mut text = String::from("{");
    let metadata = metadata(plan, layout, hashes, data);
    if let Some(pairs) = metadata {
        text.push_str(&quoted(METADATA));
        text.push_str(":{");
        for (at, (key, value)) in pairs.iter().enumerate() {
            separate(&mut text, at);
            text.push_str(&quoted(key));
            text.push(':');
            text.push_str(&quoted(value));
        }
        text.push('}');
    }
    for entry in &layout.placed {
        // Without metadata, only the brace stands before the first entry.
        let first = text.len() == 1;
        separate(&mut text, usize::from(!first));
        text.push_str(&quoted(&entry.name));
        text.push_str(":{\"dtype\":");
        text.push_str(&quoted(&entry.dtype));
        text.push_str(",\"shape\":[");
        for (at, size) in entry.shape.iter().enumerate() {
            separate(&mut text, at);
            write(&mut text, format_args!("{size}"));
        }
        let (start, end) = (entry.start, entry.end);
        write(
            &mut text,
            format_args!("],\"data_offsets\":[{start},{end}]}}"),
        );
    }
    text.push('}');
    let unpadded = text.len() as u64 + PREFIX_BYTES;
    let blanks = unpadded.next_multiple_of(layout.align.into()) - unpadded;
    // safetensors allows trailing spaces after the object.
    text.extend((0..blanks).map(|_| ' '));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.into_bytes());
    header
}

/// The metadata in the order in which they are written.
fn metadata<'p>(
    plan: &'p ContainerPlan<'_>,
    layout: &EntryLayout,
    hashes: &[Hash],
    data: Hash,
) -> Option<Vec<(&'p str, String)>> {
    let others = plan.metadata.as_ref();
    let others = others.map(|pairs| pairs.iter().map(|(k, v)| (k.as_str(), v.clone())));
    // A plain file gets only the metadata that the caller added.
    if plan.plain {
        return others.map(Iterator::collect);
    }
    let mut pairs = vec![
        (LEVEL, "1".to_owned()),
        (INDEX, index(plan, layout, hashes)),
    ];
    if let Some(schema) = &plan.schema {
        pairs.push((SCHEMA, schema.clone()));
    }
    pairs.push((DATA_HASH, data.to_hex().to_string()));
    if plan.gpu {
        pairs.push((GPU, "1".to_owned()));
    }
    pairs.extend(others.into_iter().flatten());
    Some(pairs)
}

fn index(plan: &ContainerPlan<'_>, layout: &EntryLayout, hashes: &[Hash]) -> String {
    let mut text = String::from("{\"tensors\":{");
    let mut first = true;
    for (entry, hash) in layout.placed.iter().zip(hashes) {
        let kind = match entry.part {
            // A pad holds no values, so the index does not list it.
            EntryPart::Pad => continue,
            EntryPart::Data(at) => plan.tensors.get(at).map(|tensor| &tensor.kind),
            EntryPart::Offsets(_) => None,
        };
        separate(&mut text, usize::from(!first));
        first = false;
        let name = match kind {
            Some(PlannedKind::Struct { .. }) => "struct",
            Some(PlannedKind::Blob { .. }) => "blob",
            _ => "flat",
        };
        let (hash, align) = (hash.to_hex(), entry.align);
        let tensor = quoted(&entry.name);
        write(
            &mut text,
            format_args!("{tensor}:{{\"kind\":\"{name}\",\"b3\":\"{hash}\",\"align\":{align}"),
        );
        match kind {
            Some(PlannedKind::Struct { def, fields }) => {
                let [count, stride] = [0, 1].map(|at| entry.shape.get(at).copied().unwrap_or(0));
                let def = quoted(def);
                write(
                    &mut text,
                    format_args!(
                        ",\"def\":{def},\"stride\":{stride},\"count\":{count},\"fields\":["
                    ),
                );
                for (at, one) in fields.iter().enumerate() {
                    separate(&mut text, at);
                    field(&mut text, one);
                }
                text.push(']');
            }
            Some(PlannedKind::Blob { enc, shape_of, .. }) => {
                write(&mut text, format_args!(",\"enc\":{}", quoted(enc)));
                if let Some(other) = shape_of {
                    write(&mut text, format_args!(",\"shape_of\":{}", quoted(other)));
                }
            }
            _ => {}
        }
        text.push('}');
    }
    text.push_str("},\"order\":[");
    let given = plan.tensors.iter().map(|tensor| tensor.name.as_str());
    let order: Vec<&str> = match &plan.order {
        Some(order) => order.iter().map(String::as_str).collect(),
        None => given.collect(),
    };
    for (at, name) in order.into_iter().enumerate() {
        separate(&mut text, at);
        text.push_str(&quoted(name));
    }
    text.push(']');
    if let Some(root) = &plan.root {
        text.push_str(",\"root\":");
        text.push_str(root);
    }
    text.push('}');
    text
}

fn field(text: &mut String, field: &StructField<'_>) {
    let (path, kind) = (quoted(&field.path), field.kind.name());
    let off = field.off;
    write(
        text,
        format_args!("{{\"path\":{path},\"off\":{off},\"type\":\"{kind}\""),
    );
    // Readers take an absent length as 1 only for a type with a width.
    if field.kind.width().is_none() || field.len != 1 {
        write(text, format_args!(",\"len\":{}", field.len));
    }
    text.push('}');
}

fn separate(text: &mut String, at: usize) {
    if at > 0 {
        text.push(',');
    }
}

/// Writing to a `String` cannot fail.
fn write(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).unwrap_or_default();
}

/// A JSON string, escaped as the stock writer does it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
