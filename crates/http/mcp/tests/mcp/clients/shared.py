"""What every Python client tries, with the session of whichever version of the kit."""

import json


async def try_all(session):
    tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    fixed = {"search", "schema", "call", "batch"}
    assert set(tools) == fixed | {"demo_add", "test_image_content"}, tools

    def structured(result):
        for name in ("structuredContent", "structured_content"):
            if getattr(result, name, None) is not None:
                return getattr(result, name)
        # Kits from before 2025-06-18 know texts alone.
        return json.loads(result.content[0].text)

    def failed(result):
        return getattr(result, "isError", None) or getattr(result, "is_error", False)

    async def call(name, arguments):
        return await session.call_tool(name, arguments)

    found = structured(await call("search", {"q": "add"}))
    assert [one["operation"] for one in found["operations"]] == ["/demo/add"], found
    about = structured(await call("schema", {"operation": "/demo/add"}))
    assert about["output_schema"]["required"] == ["sum"], about
    add = {"operation": "/demo/add", "input": {"a": 2, "b": 3}}
    assert structured(await call("call", add)) == {"sum": 5}
    assert structured(await call("demo_add", {"a": 20, "b": 22})) == {"sum": 42}
    batch = {"calls": [{"id": "x", **add}], "mode": "sequential"}
    assert structured(await call("batch", batch))["results"][0]["output"] == {"sum": 5}

    wrong = await call("call", {"operation": "/demo/fill"})
    assert failed(wrong) and json.loads(wrong.content[0].text)["code"] == "DISK_FULL", wrong
    wrong = await call("demo_add", {"a": "x", "b": 1})
    assert failed(wrong) and json.loads(wrong.content[0].text)["code"] == "INVALID_INPUT", wrong

    image = (await call("test_image_content", {})).content[0]
    assert image.type == "image", image
