//! `alknet tensor stored`: the files of a node's store.

use alknet_tensor_serve::limits::PATHS;
use clap::Args;
use serde_json::{Map, Value, json};

use super::super::call::call_error;
use super::super::node_caller::NodeCaller;
use super::super::query::text;
use super::super::target::NodeArgs;
use super::super::{CommandError, CommandExit, output};

/// The operation that lists.
const LIST: &str = "tensor/list";

/// Arguments of `alknet tensor stored`.
#[derive(Debug, Args)]
pub(crate) struct StoredTensorsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// List only this path and the paths below it.
    #[arg(long, value_name = "PATH")]
    below: Option<String>,
}

/// Prints a line for each path that the caller may read.
pub(super) fn run(args: &StoredTensorsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let below = args.below.as_deref().map(super::store_path).transpose()?;
    let below = below.as_ref().map(|path| path.as_str());
    args.node.reached(async |node| {
        let files = all(node, below).await?;
        if json {
            output::json_line(&json!({ "files": files }))?;
            return Ok(CommandExit::Ok);
        }
        if files.is_empty() {
            output::note("The node has no file there that you may read.");
        }
        files
            .iter()
            .map(line)
            .try_for_each(|it| output::line(&it))?;
        Ok(CommandExit::Ok)
    })
}

/// The rows of every page.
async fn all(node: &NodeCaller, below: Option<&str>) -> Result<Vec<Value>, CommandError> {
    let mut input = Map::new();
    if let Some(below) = below {
        input.insert("below".to_owned(), below.into());
    }
    let (mut rows, mut seen) = (Vec::new(), 0);
    loop {
        let page = node.call(LIST, &json!(input)).await.map_err(call_error)?;
        let page = page.value();
        let files = page["files"].as_array().map_or(&[][..], Vec::as_slice);
        rows.extend_from_slice(files);
        let Some(next) = page["next"].as_str() else {
            return Ok(rows);
        };
        // A node could go on for ever: no store has more paths. A page may be empty if files of the store are missing.
        seen += files.len().max(1);
        if seen > PATHS {
            let text = "the node gives a list of files without an end";
            return Err(CommandError::new(
                CommandExit::Failed,
                "INVALID_OUTPUT",
                text,
            ));
        }
        input.insert("after".to_owned(), next.into());
    }
}

fn line(row: &Value) -> String {
    let bytes = row["bytes"].as_u64().unwrap_or_default();
    format!("{bytes:>12}  {}  {}", text(&row["id"]), text(&row["path"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_size_id_and_path() {
        let row = json!({ "path": "models/bert", "id": "ab12", "bytes": 1024 });
        assert_eq!(line(&row), "        1024  ab12  models/bert");
    }
}
