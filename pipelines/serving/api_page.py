"""The OpenAPI document for people: a page without scripts, and without anything of another host."""

from html import escape
from typing import Any

from fastapi import FastAPI, Response

_HEAD = (
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="page/icon.svg">'
    '<link rel="stylesheet" href="page/theme.css"><link rel="stylesheet" href="page/docs.css">'
)


def add_api_page(app: FastAPI) -> None:
    """`/docs`: every route with its arguments, bodies and statuses."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(_page(app.openapi()), media_type="text/html; charset=utf-8")


def _page(document: dict[str, Any]) -> str:
    routes = "".join(
        _route(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    title, description = (escape(document["info"][name]) for name in ("title", "description"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{_HEAD}</head><body>'
        f'<h1>{title}</h1><p>{description}</p><p>For machines: <a href="openapi.json">openapi.json</a></p>'
        f"{routes}</body></html>"
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    arguments = [
        (one["name"], one.get("description") or one["in"], _choices(one["schema"]))
        for one in operation.get("parameters", [])
    ]
    bodies = [(kind, "body", "") for kind in operation.get("requestBody", {}).get("content", {})]
    statuses = [(status, answer["description"], "") for status, answer in operation["responses"].items()]
    return (
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        f"{_table('takes', arguments + bodies)}{_table('answers', statuses)}"
    )


def _choices(schema: dict[str, Any]) -> str:
    return ", ".join(schema.get("enum", []))


def _table(caption: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption>{lines}</table>"
