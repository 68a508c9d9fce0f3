"""A server for texts: FastAPI around `pygen.Engine`.

uvicorn --factory examples.serve:demo
curl -N localhost:8000/generate -H 'content-type: application/json' -d '{"prompt": "The longest river is", "seed": 7}'
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

import pygen


def app_for(engine: pygen.Engine) -> FastAPI:
    """`POST /generate` with `prompt` and any setting of `generate` streams the text of the answer."""
    app = FastAPI()

    async def generate(request: dict[str, Any]) -> StreamingResponse:
        try:
            # In a thread, because it waits while the queue of the engine is full.
            handle = await run_in_threadpool(engine.submit, request, timeout=30)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(503, str(error)) from error

        async def texts() -> AsyncIterator[str]:
            try:
                async for event in handle:
                    yield event.text or ""
            finally:
                # A client that leaves frees its row.
                handle.cancel()

        return StreamingResponse(texts(), media_type="text/plain")

    app.post("/generate")(generate)
    return app


def demo() -> FastAPI:
    from pygen.cli.smollm2 import load

    model, tokenizer = load()
    return app_for(pygen.Engine(model, tokenizer=tokenizer, max_new_tokens=128))
