//! Schemas of layouts, and packed bytes of the accepted ones.

use alknet_typedef::{ExternalData, LayoutMode, Schema, SchemaLimits, TypedefError, parse};

/// Smaller than the real limits where these only cost time.
fn limits() -> SchemaLimits {
    SchemaLimits {
        schema_bytes: 64 << 10,
        expanded: 2000,
        entries: 2000,
        packed_bytes: 4096,
        values: 4096,
        ..SchemaLimits::default()
    }
}

/// The text of a schema up to the first zero byte; the rest are bytes of its values.
pub fn typedef(data: &[u8]) -> bool {
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    let (text, rest) = data.split_at(end);
    let bytes = rest.get(1..).unwrap_or_default();
    let limits = limits();
    let passed = parse(text, &limits).and_then(|schema| Schema::new(&schema, &limits));
    let schema = match passed {
        Ok(schema) => schema,
        Err(error) => {
            assert!(matches!(
                error,
                TypedefError::Limit(_) | TypedefError::Schema { .. }
            ));
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let again = Schema::new(schema.normalized(), &limits).expect("it went through already");
    assert_eq!(again.normalized(), schema.normalized(), "one form");
    let packed = packed(&schema, bytes);
    let aligned = aligned(&schema, bytes);
    packed || aligned
}

/// Whether there is a packed layout.
fn packed(schema: &Schema, bytes: &[u8]) -> bool {
    let Ok(engine) = schema.compile("#", LayoutMode::Packed) else {
        return false;
    };
    let codec = engine.packed().expect("packed");
    if let Ok((value, used)) = codec.read_first(bytes) {
        let mut written = Vec::new();
        codec.write(&value, &mut written).expect("it was read");
        assert_eq!(written.len(), used);
        let again = codec.read(&written).expect("written just now");
        let mut twice = Vec::new();
        codec.write(&again, &mut twice).expect("it was read");
        assert_eq!(twice, written, "one value, one form");
        // A NaN has spare bits, which do not count.
        assert!(written == bytes[..used] || format!("{value:?}").contains("NaN"));
        if let Ok(json) = engine.to_json(
            &value,
            &ExternalData {
                region: bytes,
                tensors: None,
            },
        ) {
            assert_eq!(
                engine.validate(&json).is_ok(),
                engine.is_valid(&json),
                "{json}"
            );
            let mut region = Vec::new();
            engine
                .from_json(&json, &mut region)
                .expect("it came from bytes");
        }
    }
    true
}

/// Whether there is an aligned layout.
fn aligned(schema: &Schema, bytes: &[u8]) -> bool {
    let Ok(engine) = schema.compile("#", LayoutMode::Aligned) else {
        return false;
    };
    let map = engine.offsets().expect("aligned");
    for entry in map.iter() {
        let range = entry.range();
        assert!(
            range.start <= range.end && range.end <= map.stride(),
            "{}",
            entry.path()
        );
        let read = engine.read(bytes, entry.path());
        assert!(read.is_err() || range.end <= bytes.len() as u64);
    }
    if let Ok(value) = engine.read(bytes, "") {
        let mut record = bytes.to_vec();
        engine.write(&mut record, "", &value).expect("it was read");
        let again = engine.read(&record, "").expect("written just now");
        // As text: a NaN is not equal to itself.
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
    let fields = schema.fields("#").expect("it has a layout");
    let mut end = 0;
    for field in &fields.fields {
        assert!(
            field.off >= end && field.off <= fields.stride,
            "{}",
            field.path
        );
        end = field.off;
    }
    true
}
