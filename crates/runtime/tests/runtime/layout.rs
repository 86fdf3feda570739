//! Layouts made of elements, against the package that reads and compares files.

use std::io::Cursor;

use alknet_tensor::tools::diff;
use alknet_tensor::{
    ContainerLimits, ContainerReader, ContainerWriter, Dtype, FieldType, LayoutOracle, Meta,
    PREFIX_BYTES, SchemaLayouts, StructField, VerifyDepth, verify,
};
use serde_json::{Value, json};

use crate::support::{failure, modules, outcome};

/// The default export of a module with elements.
#[track_caller]
fn layout_of(elements: &str) -> Value {
    let source = format!(
        "import {{ h, layout, diff, Struct, Field, Tensor, Blob, ArrayOf }} from 'alknet:core/layout-host';\n{elements}"
    );
    let spec = modules(&[
        ("./main.js", "import it from './it.tsx'; export default it;"),
        ("./it.tsx", &source),
    ]);
    match outcome(spec).0.result {
        Ok(value) => value,
        Err(failure) => panic!("{source}\n{failure}\n{:?}", failure.stack),
    }
}

/// A tree with everything in it that there is, twice: before and after a change.
const TREES: &str = r#"
const tree = (width: number, more: unknown) => layout(
  <Struct name="model">
    <Field name="embed"><Tensor dtype="BF16" shape={[8, width]} align={256} /></Field>
    <Field name="layers">
      <ArrayOf count={2}>
        <Struct>
          <Field name="weight"><Tensor dtype="F32" shape={[width, width]} /></Field>
          <Field name="bias"><Tensor dtype="F32" shape={[width]} /></Field>
        </Struct>
      </ArrayOf>
    </Field>
    <Field name="things">
      <ArrayOf count={3}>
        <Struct name="Thing">
          <Field name="id" type={width === 4 ? 'Uint16' : 'Uint32'} />
          <Field name="state" type="Enum" values={['off', 'on']} />
          <Field name="name" type="String" bytes={5} />
          <Field name="raw" type="Bytes" bytes={3} />
          <Field name="at">
            <ArrayOf count={2}>
              <Struct name="Point">
                <Field name="x" type="Float32" count={3} nonfinite />
                <Field name="ok" type="Boolean" />
              </Struct>
            </ArrayOf>
          </Field>
          <Field name="text" type="String" />
          <Field name="tags" type="Timestamp" bytes={20} count={2} />
          <Field name="a/b~c" type="Float64" />
          {more}
        </Struct>
      </ArrayOf>
    </Field>
    <Field name="words"><Blob enc="utf8" count={2} shapeOf="model.sizes" /></Field>
    <Field name="sizes"><Tensor dtype="U64" shape={[2, 1]} /></Field>
  </Struct>
);
const a = tree(4, <Field name="z" type="Int8" />);
const b = tree(6, <Field name="w" type="Int16" count={2} />);
"#;

fn dims(value: &Value) -> Vec<u64> {
    serde_json::from_value(value.clone()).expect("sizes")
}

/// A file that is laid out so; of zeros.
fn file(layout: &Value) -> Vec<u8> {
    let index = &layout["index"];
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()))
        .with_schema(layout["schema"].to_string())
        .with_root(index["root"].to_string());
    for name in index["order"].as_array().expect("names") {
        let name = name.as_str().expect("a name");
        let about = &index["tensors"][name];
        match about["kind"].as_str().expect("a kind") {
            "flat" => {
                let dtype = Dtype::from_name(about["dtype"].as_str().expect("a type"));
                let (dtype, shape) = (dtype.expect("a known type"), dims(&about["shape"]));
                let bytes = shape.iter().product::<u64>() * dtype.bits() / 8;
                let content = vec![0; bytes as usize];
                writer.flat(name, dtype, &shape, content.into())
            }
            "struct" => {
                let [count, stride] = ["count", "stride"].map(|key| about[key].as_u64());
                let sizes = [count.expect("a number"), stride.expect("a number")];
                let content = vec![0; (sizes[0] * sizes[1]) as usize];
                let def = about["def"].as_str().expect("a reference");
                writer.strukt(name, def, sizes, fields(about), content.into())
            }
            _ => {
                let enc = about["enc"].as_str().expect("an encoding");
                writer.blob(name, enc, [0, 0], Vec::new().into())
            }
        }
        .expect("it fits");
    }
    writer.finish().expect("a good layout").1.into_inner()
}

/// Fields as a reader takes them from the index.
fn fields(about: &Value) -> Vec<StructField<'_>> {
    let list = about["fields"].as_array().expect("a list");
    let field = |it: &Value| {
        let kind = it["type"].as_str().and_then(FieldType::from_name);
        let (kind, len) = match (kind.expect("a type"), it["len"].as_u64()) {
            (FieldType::String | FieldType::Bytes | FieldType::Timestamp, None) => {
                (FieldType::Indirect, 1)
            }
            (kind, len) => (kind, len.unwrap_or(1)),
        };
        let path = it["path"].as_str().expect("a path").to_owned();
        StructField::new(path, kind, it["off"].as_u64().expect("an offset")).with_len(len)
    };
    list.iter().map(field).collect()
}

#[test]
fn records_lie_where_the_schema_puts_them() {
    let layout = layout_of(&format!("{TREES} export default a;"));
    let about = &layout["index"]["tensors"]["model.things"];
    let schema = layout["schema"].to_string();
    let def = about["def"].as_str().expect("a reference");
    let theirs = SchemaLayouts::default().layout(&schema, def);
    let theirs = theirs.expect("a layout");
    assert_eq!(about["stride"], theirs.stride);
    assert_eq!(fields(about), theirs.fields);
    assert_eq!(def, "#/$defs/Thing");
}

#[test]
fn a_layout_is_that_of_a_file() {
    let layout = layout_of(&format!("{TREES} export default a;"));
    let file = file(&layout);
    let reader =
        ContainerReader::open(&file[..], &ContainerLimits::default()).expect("a good file");
    let report = verify(&reader, VerifyDepth::Full, Some(&SchemaLayouts::default()));
    assert!(report.expect("in memory").is_good());
    let names: Vec<&str> = reader.names().collect();
    assert_eq!(json!(names), layout["index"]["order"]);
    let expected = json!([
        "model.embed",
        "model.layers.0.weight",
        "model.layers.0.bias",
        "model.layers.1.weight",
        "model.layers.1.bias",
        "model.things",
        "model.words",
        "model.sizes",
    ]);
    assert_eq!(layout["index"]["order"], expected);
    let leaf = layout["index"]["root"].pointer("/model/layers/1/bias");
    assert_eq!(leaf, Some(&json!("#model.layers.1.bias")));
}

/// The index is what a file may have as it stands: what is more in it readers pass over.
#[test]
fn the_index_goes_into_a_header_as_it_is() {
    let layout = layout_of("export default layout(<Struct>
        <Field name='p'><ArrayOf count={2}><Struct name='P'><Field name='x' type='Int32' /></Struct></ArrayOf></Field>
        <Field name='q'><Tensor dtype='U8' shape={[3]} /></Field>
    </Struct>);");
    let header = json!({
        "__metadata__": {
            "metatensor": "1",
            "mt.index": layout["index"].to_string(),
            "mt.schema": layout["schema"].to_string(),
        },
        "p": { "dtype": "U8", "shape": [2, 4], "data_offsets": [0, 8] },
        "q": { "dtype": "U8", "shape": [3], "data_offsets": [8, 11] },
    });
    let meta = Meta::parse(
        header.to_string().as_bytes(),
        11,
        &ContainerLimits::default(),
    );
    let meta = meta.expect("a good header");
    meta.check_layouts(&SchemaLayouts::default())
        .expect("the schema's");
    assert!(meta.data_start() > PREFIX_BYTES);
}

#[test]
fn steps_are_those_of_the_command_line() {
    let both = layout_of(&format!(
        "{TREES} export default [a, b, diff(a, b), diff(b, a), diff(a, a)];"
    ));
    let files = [file(&both[0]), file(&both[1])];
    let readers = files.each_ref().map(|file| {
        ContainerReader::open(&file[..], &ContainerLimits::default()).expect("a good file")
    });
    let [a, b] = readers.each_ref().map(ContainerReader::meta);
    assert_eq!(json!(diff(a, b)), both[2]);
    assert_eq!(json!(diff(b, a)), both[3]);
    assert_eq!(both[4], json!([]));
    let ops: Vec<&str> = both[2]
        .as_array()
        .expect("steps")
        .iter()
        .map(|step| step["op"].as_str().expect("a name"))
        .collect();
    for op in ["add", "remove", "reshape", "retype"] {
        assert!(ops.contains(&op), "{ops:?}");
    }
    let other = layout_of(
        "export default diff(
        layout(<Field name='a'><Tensor dtype='F32' shape={[2]} /></Field>),
        layout(<Field name='b'><Blob /></Field>));",
    );
    let expected = json!([
        { "op": "remove", "path": "a", "from": "F32 [2]" },
        { "op": "add", "path": "b", "to": "blob of bytes [?]" },
    ]);
    assert_eq!(other, expected);
}

#[test]
fn what_is_no_layout_is_refused() {
    let point = "h(Struct, { name: 'P' }, h(Field, { name: 'x', type: 'Int8' }))";
    let tensor = "h(Tensor, { dtype: 'U8', shape: [1] })";
    let field = |inner: &str| format!("h(Field, {{ name: 'f' }}, {inner})");
    let types = [
        "h('Shell', null)".to_owned(),
        "'text'".to_owned(),
        tensor.to_owned(),
        field("h(Tensor, { dtype: 'F3', shape: [1] })"),
        field("h(Tensor, { dtype: 'U8', shape: [1], offset: 3 })"),
        field("'text'"),
        "h(Field, { name: 'f' })".to_owned(),
        "h(Field, { name: 'f', type: 'Int8' })".to_owned(),
        format!("h(Field, {{ name: '' }}, {tensor})"),
        format!("h(Field, {{ name: '__pad__.0' }}, {tensor})"),
        format!("h(Field, {{ name: 'a.__off__' }}, {tensor})"),
        format!("h(Field, {{ name: 'a\\n' }}, {tensor})"),
        format!("[{}, {}]", field(tensor), field(tensor)),
        "h(Struct, { name: 's' })".to_owned(),
        format!("h(Struct, {{ name: 's' }}, {tensor})"),
        format!(
            "h(Struct, {{ name: 's' }}, h(Field, {{ name: 'x', type: 'Int8' }}), {})",
            field(tensor)
        ),
        "h(Struct, { name: 's' }, h(Field, { name: 'x', type: 'Int128' }))".to_owned(),
        "h(Struct, { name: 's' }, h(Field, { name: 'x', type: 'Enum' }))".to_owned(),
        "h(Struct, { name: 's s' }, h(Field, { name: 'x', type: 'Int8' }))".to_owned(),
        field("h(Struct, null, h(Field, { name: 'x', type: 'Int8' }))"),
        format!(
            "[{point}, h(Field, {{ name: 'q' }}, h(Struct, {{ name: 'P' }}, h(Field, {{ name: 'y', type: 'Int8' }})))]"
        ),
        field("h(Blob, { shapeOf: 'nowhere' })"),
    ];
    let ranges = [
        field("h(Tensor, { dtype: 'U8', shape: [-1] })"),
        field("h(Tensor, { dtype: 'U8', shape: [1.5] })"),
        field("h(Tensor, { dtype: 'U8', shape: [1, 1, 1, 1, 1, 1, 1, 1, 1] })"),
        field("h(Tensor, { dtype: 'U8', shape: [1], align: 48 })"),
        field(&format!("h(ArrayOf, {{ count: 65537 }}, {tensor})")),
        field(&format!(
            "h(ArrayOf, {{ count: 300 }}, h(ArrayOf, {{ count: 300 }}, {tensor}))"
        )),
        field(&format!("h(ArrayOf, {{ count: 2 ** 60 }}, {point})")),
        format!("h(Field, {{ name: 'x'.repeat(1025) }}, {tensor})"),
        "h(Struct, { name: 's' }, h(Field, { name: 'x', type: 'Float64', count: 2 ** 52 }))"
            .to_owned(),
        format!(
            "h(Struct, {{ name: 's', record: true }}, {})",
            field(&format!("h(ArrayOf, {{ count: 70000 }}, {point})"))
        ),
    ];
    let refused = |elements: &str, name: &str| {
        let source = format!(
            "import {{ h, layout, Struct, Field, Tensor, Blob, ArrayOf }} from 'alknet:core/layout-host';
             layout({elements});"
        );
        let failure = failure(&source);
        assert_eq!(failure.name.as_deref(), Some(name), "{elements}: {failure}");
    };
    for elements in &types {
        refused(elements, "TypeError");
    }
    for elements in &ranges {
        refused(elements, "RangeError");
    }
}
