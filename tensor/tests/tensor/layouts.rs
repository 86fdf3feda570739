//! Fields beside what the schema engine makes of their schema.

use std::mem::offset_of;

use alknet_tensor::{
    ContainerReader, FieldType, LayoutOracle, SchemaLayouts, StructField, TensorErrorCode,
    VerifyDepth, verify,
};
use alknet_typedef::{LayoutMode, SchemaLimits, compile};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{finish, open, writer};
use crate::plan::{PlanRng, PlanStyle, SchemaPlan};

/// As C lays it out, and so the engine.
#[repr(C)]
#[derive(Clone, Copy)]
struct Star {
    id: u16,
    place: [f64; 3],
    hot: u8,
    magnitude: f32,
    kind: u32,
}

const STARS: [Star; 2] = [
    Star {
        id: 1,
        place: [0.5, -1.0, 2.0],
        hot: 1,
        magnitude: 4.5,
        kind: 2,
    },
    Star {
        id: 513,
        place: [1e300, 0.0, -0.25],
        hot: 0,
        magnitude: -1.5,
        kind: 0,
    },
];

fn schema() -> String {
    let schema = json!({ "$defs": { "Star": {
        "TypeDef:Struct": { "fields": ["id", "place", "hot", "magnitude", "kind"] },
        // Another order than that of the bytes.
        "properties": {
            "kind": { "TypeDef:Enum": true, "enum": ["dwarf", "giant", "neutron"] },
            "place": { "TypeDef:Array": true, "items": { "TypeDef:Float64": true },
                       "minItems": 3, "maxItems": 3 },
            "magnitude": { "TypeDef:Float32": true },
            "hot": { "TypeDef:Boolean": true },
            "id": { "TypeDef:Uint16": true },
        },
    } } });
    schema.to_string()
}

fn bytes(stars: &[Star]) -> Vec<u8> {
    let mut all = vec![0; size_of_val(stars)];
    for (star, record) in stars.iter().zip(all.chunks_exact_mut(size_of::<Star>())) {
        let mut put = |at: usize, bytes: &[u8]| {
            record[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(offset_of!(Star, id), &star.id.to_le_bytes());
        let place: Vec<u8> = star.place.iter().flat_map(|x| x.to_le_bytes()).collect();
        put(offset_of!(Star, place), &place);
        put(offset_of!(Star, hot), &[star.hot]);
        put(offset_of!(Star, magnitude), &star.magnitude.to_le_bytes());
        put(offset_of!(Star, kind), &star.kind.to_le_bytes());
    }
    all
}

fn file(stride: u64, fields: Vec<StructField<'static>>, records: Vec<u8>) -> Vec<u8> {
    let mut writer = writer().with_schema(schema());
    let size = [records.len() as u64 / stride, stride];
    writer
        .strukt("stars", "#/$defs/Star", size, fields, records.into())
        .expect("it fits");
    finish(writer).1
}

fn problems(reader: &ContainerReader<Vec<u8>>) -> Vec<TensorErrorCode> {
    let report = verify(reader, VerifyDepth::Full, Some(&SchemaLayouts::default()));
    let problems = report.expect("in memory").problems;
    problems
        .iter()
        .map(alknet_tensor::TensorError::code)
        .collect()
}

#[test]
fn the_engine_lays_records_out_as_the_compiler_does() {
    let layout = SchemaLayouts::default()
        .layout(&schema(), "#/$defs/Star")
        .expect("a layout");
    assert_eq!(layout.stride, size_of::<Star>() as u64);
    assert_eq!(layout.members, [("/kind".to_owned(), 3)]);
    let reader = open(&file(layout.stride, layout.fields, bytes(&STARS))).expect("good");
    assert_eq!(problems(&reader), []);
    let stars = reader.strukt("stars").expect("records");
    let magnitudes: Vec<f32> = stars.column("/magnitude").expect("one").collect();
    assert_eq!(magnitudes, STARS.map(|star| star.magnitude));
    let ids: Vec<u16> = stars.column("/id").expect("one").collect();
    assert_eq!(ids, STARS.map(|star| star.id));
}

#[test]
fn other_offsets_than_the_schemas_are_refused() {
    let oracle = SchemaLayouts::default();
    let layout = oracle.layout(&schema(), "Star").expect("a layout");
    for at in 0..5 {
        let mut fields = layout.fields.clone();
        match at {
            0 => fields[0].off = 2,
            1 => fields[1].len = 2,
            2 => fields[2].kind = FieldType::Uint8,
            3 => fields[3].path = "/other".into(),
            _ => drop(fields.pop()),
        }
        let reader = open(&file(layout.stride, fields, bytes(&STARS))).expect("a header");
        let refused = reader.meta().check_layouts(&oracle);
        assert_eq!(
            refused.expect_err("it differs").code(),
            TensorErrorCode::Layout,
            "{at}"
        );
    }
    let wide = file(layout.stride + 8, layout.fields.clone(), vec![0; 112]);
    let refused = open(&wide).expect("a header").meta().check_layouts(&oracle);
    assert_eq!(
        refused.expect_err("another stride").code(),
        TensorErrorCode::Layout
    );
    let mut member = bytes(&STARS);
    member[offset_of!(Star, kind)] = 9;
    let reader = open(&file(layout.stride, layout.fields, member)).expect("good");
    assert_eq!(problems(&reader), [TensorErrorCode::Value]);
}

#[test]
fn what_has_no_layout_is_no_schema() {
    let oracle = SchemaLayouts::default();
    for (schema, def) in [
        ("{}", "#/$defs/Star"),
        ("[", "#"),
        (r#"{"$defs":{"a":{"type":"object"}}}"#, "a"),
        (r#"{"$defs":{"a":{"TypeDef:Int128":true}}}"#, "a"),
        (r##"{"$defs":{"a":{"$ref":"#/$defs/a"}}}"##, "a"),
        (r#"{"TypeDef:Int8":true,"TypeDef:Int8":true}"#, "#"),
    ] {
        let refused = oracle.layout(schema, def);
        assert!(refused.is_err_and(|why| !why.contains('\n')), "{schema}");
    }
    let mut all = writer().with_schema("{}");
    all.strukt("s", "#/$defs/No", [0, 1], Vec::new(), Vec::new().into())
        .expect("it fits");
    let reader = open(&finish(all).1).expect("a header");
    let refused = reader.meta().check_layouts(&oracle);
    assert_eq!(
        refused.expect_err("no such schema").code(),
        TensorErrorCode::Schema
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A random schema, its layout in a file, a random value in its bytes, and all of it back.
    #[test]
    fn random_records_survive_a_file(seed in any::<u64>()) {
        let mut dice = PlanRng::new(seed);
        let style = PlanStyle { mode: LayoutMode::Aligned, native: false };
        let plan = SchemaPlan::random(&mut dice, style, 3);
        let schema = plan.schema();
        let engine = compile(&schema, LayoutMode::Aligned, &SchemaLimits::default()).expect("it compiles");
        let stride = engine.offsets().expect("aligned").stride();
        prop_assume!(stride > 0);
        let value = plan.value(&mut dice, &mut Vec::new());
        let mut record = vec![0; stride as usize];
        engine.write(&mut record, "", &value).expect("it fits");

        let text = json!({ "$defs": { "R": schema } }).to_string();
        let oracle = SchemaLayouts::default();
        let layout = oracle.layout(&text, "R").expect("a layout");
        prop_assert_eq!(layout.stride, stride);
        let mut all = writer().with_schema(text);
        all.strukt("r", "R", [1, stride], layout.fields, record.into()).expect("it fits");
        let reader = open(&finish(all).1).expect("good");
        reader.meta().check_layouts(&oracle).expect("the same");
        let records = reader.strukt("r").expect("records");
        let record = records.record(0).expect("one");
        prop_assert_eq!(engine.read(record.bytes(), "").expect("whole"), value);
        for field in records.fields() {
            record.value(&field).expect("a value of its type");
        }
    }
}
