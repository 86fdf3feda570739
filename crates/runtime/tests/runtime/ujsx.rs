//! Elements, their hosts, and the bundle of Preact Signals, unmodified.

use serde_json::json;

use crate::support::{modules, outcome};

#[test]
fn elements_become_json() {
    let spec = modules(&[
        ("./main.js", "import app from './app.tsx'; export default app;"),
        ("./app.tsx", "
import { h, Fragment, createRoot } from 'alknet:core/ujsx';
import { jsonHost } from 'alknet:core/json-host';
import { signal } from 'alknet:core/signals';
const count = signal<number>(1);
const Item = ({ name, children }: { name: string; children?: unknown }) => <li title={name}>{children}</li>;
const App = () => (
  <ul key='k'>
    {['a', 'b'].map((name) => <Item name={name}>{count} of {2}</Item>)}
    <>{null}{false}<b/></>
  </ul>
);
const root = createRoot(jsonHost);
const first = root.render(<App/>);
count.value = 2;
const second: any = root.value;
root.unmount();
count.value = 3;
export default [first, second.children[0].children, (root.value as any).children.length];
"),
    ]);
    let item = |name: &str, n: i32| json!({ "type": "li", "props": { "title": name }, "children": [n, " of ", 2] });
    let list = json!({ "type": "ul", "props": { "key": "k" }, "children": [item("a", 1), item("b", 1), { "type": "b", "props": {}, "children": [] }] });
    assert_eq!(outcome(spec).0.result, Ok(json!([list, [2, " of ", 2], 3])));
}

#[test]
fn workflows_call_operations() {
    let spec = modules(&[
        (
            "./main.js",
            "import flow from './flow.tsx'; export default flow;",
        ),
        (
            "./flow.tsx",
            "
import { h } from 'alknet:core/ujsx';
import { run, Operation, Sequential, Parallel, Conditional, Map } from 'alknet:core/ops-host';
export default await run(
  <Sequential>
    <Operation path='echo' input={[1, 2, 3]} as='list'/>
    <Parallel>
      <Operation path='echo' input={'a'}/>
      <Operation path='echo' input={'b'} as='b'/>
    </Parallel>
    <Conditional when={(r) => r.b === 'b'} else={<Operation path='fail'/>}>
      <Operation path='echo' input={(r) => r.list.length} as='length'/>
    </Conditional>
    <Conditional when={() => false}><Operation path='fail'/></Conditional>
    <Map over={(r) => r.list}>{(item) => <Operation path='echo' input={item * 10}/>}</Map>
  </Sequential>,
);
",
        ),
    ]);
    let (outcome, host) = outcome(spec);
    let expected =
        json!({ "answer": [10, 20, 30], "results": { "list": [1, 2, 3], "b": "b", "length": 3 } });
    assert_eq!(outcome.result, Ok(expected));
    assert_eq!(host.calls.lock().expect("no poison").len(), 7);
}

#[test]
fn predicates_have_nothing_to_call() {
    for element in [
        "h(Conditional, { when: () => ops.call('echo', true) })",
        "h(Map, { over: () => { ops.subscribe('count').next(); return []; } }, () => null)",
        "h(Operation, { path: 'echo', input: () => ops.call('echo') })",
    ] {
        let source = format!(
            "import {{ run, h, Conditional, Map, Operation }} from 'alknet:core/ops-host'; await run({element}); await 0;"
        );
        let (outcome, host) = outcome(modules(&[("./main.js", &source)]));
        let failure = outcome.result.expect_err(element);
        assert!(
            ["E_DENIED", "E_ENCODE"].contains(&failure.code.name()),
            "{failure:?}"
        );
        assert!(
            host.calls.lock().expect("no poison").is_empty(),
            "{element}"
        );
    }
}

#[test]
fn a_workflow_refuses_what_it_does_not_know() {
    for element in [
        "h('Shell', null)",
        "h(Operation, null, 'text')",
        "h(Map, { over: [1] })",
    ] {
        let source = format!(
            "import {{ run, h, Operation, Map }} from 'alknet:core/ops-host'; await run({element});"
        );
        let (outcome, _) = outcome(modules(&[("./main.js", &source)]));
        assert_eq!(
            outcome.result.expect_err(element).name.as_deref(),
            Some("TypeError"),
            "{element}"
        );
    }
}

#[test]
fn the_preact_signals_bundle_runs_unmodified() {
    let bundle = include_str!("../data/preact-signals-core.mjs");
    let main = "
        import { signal, computed, effect, batch, untracked } from './signals.mjs';
        const a = signal(1), b = signal(2), seen = [];
        const sum = computed(() => a.value + b.value);
        const stop = effect(() => { seen.push(sum.value); });
        a.value = 10;
        batch(() => { a.value = 20; b.value = 30; });
        stop();
        a.value = 0;
        export default [seen, untracked(() => sum.value), sum.peek()];";
    let spec = modules(&[("./main.js", main), ("./signals.mjs", bundle)]);
    assert_eq!(outcome(spec).0.result, Ok(json!([[3, 12, 50], 30, 30])));
}

#[test]
fn our_signals_tell_each_change_once() {
    let main = "
        import { signal, computed, effect, batch } from 'alknet:core/signals';
        const a = signal(1), b = signal(2), seen = [];
        let computed_ = 0;
        const sum = computed(() => { computed_++; return a.value + b.value; });
        const stop = effect(() => { seen.push(sum.value); return () => seen.push('cleaned'); });
        a.value = 1;
        batch(() => { a.value = 20; b.value = 30; });
        stop();
        a.value = 0;
        const loop = signal(0);
        let endless;
        try { effect(() => { loop.value = loop.value + 1; }); } catch (error) { endless = error.message; }
        export default [seen, computed_, sum.value, endless !== undefined];";
    let (outcome, _) = outcome(modules(&[("./main.js", main)]));
    assert_eq!(
        outcome.result,
        Ok(json!([[3, "cleaned", 50, "cleaned"], 2, 30, true]))
    );
}
