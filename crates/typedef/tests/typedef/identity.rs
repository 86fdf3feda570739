//! A random schema, laid out, written and read: the values come out unchanged.

use alknet_typedef::{
    ExternalData, FieldKind, LayoutEngine, LayoutMode, RecordValue, Schema, SchemaLimits, compile,
};
use proptest::prelude::*;

use crate::plan::{PlanRng, PlanStyle, SchemaPlan};

const DEPTH: u32 = 3;

fn engine(plan: &SchemaPlan, mode: LayoutMode) -> LayoutEngine {
    let schema = plan.schema();
    compile(&schema, mode, &SchemaLimits::default())
        .unwrap_or_else(|error| panic!("{schema}: {error}"))
}

/// Through JSON and back, and valid on the way.
fn through_json(engine: &LayoutEngine, value: &RecordValue, region: &[u8]) {
    let outside = ExternalData {
        region,
        ..ExternalData::default()
    };
    let json = engine
        .to_json(value, &outside)
        .expect("every value has a JSON form");
    assert_eq!(engine.validate(&json), Ok(()), "{json}");
    let mut again = Vec::new();
    let meant = engine
        .from_json(&json, &mut again)
        .expect("what is valid can be bytes");
    assert_eq!((&meant, again.as_slice()), (value, region), "{json}");
}

/// Values of fields, by their paths.
fn fields(path: &str, value: &RecordValue, found: &mut Vec<(String, RecordValue)>) {
    let part = |name: &str| format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
    match value {
        RecordValue::Struct(members) => {
            members
                .iter()
                .for_each(|(name, value)| fields(&part(name), value, found));
        }
        RecordValue::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(i, item)| fields(&part(&i.to_string()), item, found));
        }
        // The whole union writes its tag.
        RecordValue::Union(..) => found.push((path.to_owned(), value.clone())),
        other => found.push((path.to_owned(), other.clone())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn aligned_records_keep_their_values(seed in any::<u64>()) {
        let mut dice = PlanRng::new(seed);
        let style = PlanStyle { mode: LayoutMode::Aligned, native: false };
        let plan = SchemaPlan::random(&mut dice, style, DEPTH);
        let engine = engine(&plan, LayoutMode::Aligned);
        let stride = engine.offsets().expect("aligned").stride() as usize;
        let mut region = Vec::new();
        let value = plan.value(&mut dice, &mut region);

        // The whole record, over bytes that are not zero.
        let mut record = vec![0xa5; stride + 3];
        engine.write(&mut record, "", &value).expect("it fits");
        prop_assert_eq!(&engine.read(&record, "").expect("it is whole"), &value);
        prop_assert_eq!(&record[stride..], &[0xa5; 3]);
        let outside = ExternalData { region: &region, ..ExternalData::default() };
        engine.verify(&record, &outside, &mut Default::default()).expect("it is valid");
        through_json(&engine, &value, &region);

        // Field after field, each at its own offset.
        let mut parts = vec![0; stride];
        let mut all = Vec::new();
        fields("", &value, &mut all);
        for (path, value) in &all {
            engine.write(&mut parts, path, value).expect("it has a place");
        }
        for (path, value) in &all {
            prop_assert_eq!(&engine.read(&parts, path).expect("it is there"), value, "{}", path);
        }
        prop_assert_eq!(&parts[..], &record[..stride], "gaps are zero");
        for end in 0..stride {
            let whole = engine.offsets().expect("aligned").get("").expect("the root").range().end;
            prop_assert_eq!(engine.read(&record[..end], "").is_ok(), end as u64 >= whole);
        }
    }

    #[test]
    fn packed_values_keep_their_values(seed in any::<u64>()) {
        let mut dice = PlanRng::new(seed);
        let plan = SchemaPlan::random(&mut dice, PlanStyle { mode: LayoutMode::Packed, native: false }, DEPTH);
        let engine = engine(&plan, LayoutMode::Packed);
        let codec = engine.packed().expect("packed");
        let mut region = Vec::new();
        let value = plan.value(&mut dice, &mut region);
        let mut bytes = Vec::new();
        codec.write(&value, &mut bytes).expect("it fits");
        prop_assert_eq!(&codec.read(&bytes).expect("it is whole"), &value);
        for end in 0..bytes.len() {
            prop_assert!(codec.read(&bytes[..end]).is_err(), "{} of {}", end, bytes.len());
        }
        bytes.push(0);
        prop_assert_eq!(codec.read_first(&bytes).expect("it is whole"), (value.clone(), bytes.len() - 1));
        prop_assert!(codec.read(&bytes).is_err());
        through_json(&engine, &value, &region);
    }

    #[test]
    fn no_bytes_make_it_panic(seed in any::<u64>(), noise in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut dice = PlanRng::new(seed);
        for mode in [LayoutMode::Aligned, LayoutMode::Packed] {
            let plan = SchemaPlan::random(&mut dice, PlanStyle { mode, native: false }, DEPTH);
            let engine = engine(&plan, mode);
            if let Ok(value) = engine.read(&noise, "") {
                let mut again = noise.clone();
                engine.write(&mut again, "", &value).expect("what was read can be written");
                // Gaps and the spare bits of NaN may differ.
                prop_assert_eq!(&engine.read(&again, "").expect("written just now"), &value);
            }
            if mode == LayoutMode::Packed
                && let Ok((value, used)) = engine.packed().expect("packed").read_first(&noise)
            {
                let mut again = Vec::new();
                engine.packed().expect("packed").write(&value, &mut again).expect("it was read");
                prop_assert_eq!(&again, &noise[..used], "one value, one form");
            }
        }
    }

    #[test]
    fn the_list_of_fields_tiles_the_record(seed in any::<u64>()) {
        let mut dice = PlanRng::new(seed);
        let plan = SchemaPlan::of_fields(&mut dice, PlanStyle { mode: LayoutMode::Aligned, native: false }, DEPTH);
        let engine = engine(&plan, LayoutMode::Aligned);
        let schema = Schema::new(&plan.schema(), &SchemaLimits::default()).expect("a schema");
        let record = schema.fields("#").expect("a layout");
        let map = engine.offsets().expect("aligned");
        prop_assert_eq!((record.stride, record.align), (map.stride(), map.align()));
        let mut end = 0;
        for field in &record.fields {
            prop_assert!(field.off >= end, "{:?} overlaps", field);
            let scalar = field.kind.scalar_bytes().map(u64::from);
            let size = match (field.kind, field.len, scalar) {
                (FieldKind::Bytes, Some(len), _) => 4 + len,
                (FieldKind::Bytes | FieldKind::String | FieldKind::Timestamp, None, _) => 16,
                (_, len, scalar) => len.unwrap_or(1) * scalar.unwrap_or(1),
            };
            end = field.off + size;
            prop_assert!(end <= record.stride, "{:?} is beyond {}", field, record.stride);
            let text = serde_json::to_string(field).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<alknet_typedef::RecordField>(&text).expect("JSON"), field);
        }
    }
}
