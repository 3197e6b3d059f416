"""Renders one Jinja template again and again in a process of its own. Run by path; imports nothing of lora-lab.

First line in: ``{"template", "seconds", "bytes", "characters"}``; every further line: the variables. Each is answered
by one line, ``{"text"}`` or ``{"error"}``. The environment is Jinja's immutable sandbox, and the operating system holds
the process to its memory, to no files, and each rendering to its processor time.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Strict(Undefined):
    """May be asked whether it is there, but not printed: a misspelt name would vanish from every prompt."""

    def __str__(self) -> str:
        return self._fail_with_undefined_error()


def refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def late(number: int, frame: object) -> NoReturn:
    raise TimeoutError("took too long")


def answer(**said: str) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main() -> None:
    said = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (said["bytes"], said["bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    environment = ImmutableSandboxedEnvironment(
        undefined=Strict, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False,
        extensions=["jinja2.ext.loopcontrols"],
    )  # fmt: skip
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    signal.signal(signal.SIGPROF, late)
    template = environment.from_string("")
    for line in lines():
        signal.setitimer(signal.ITIMER_PROF, said["seconds"])
        try:
            if line is None:
                template = environment.from_string(said["template"])
                text = ""
            else:
                text = template.render(json.loads(line))
        except TemplateSyntaxError as error:
            outcome = {"error": f"{error.message}, line {error.lineno} of it"}
        except TemplateError as error:
            outcome = {"error": str(error.message or type(error).__name__)}
        except MemoryError:
            outcome = {"error": f"needs more than {said['bytes'] // 2**20} MiB"}
        except TimeoutError:
            outcome = {"error": f"takes more than {said['seconds']} s for one row"}
        except Exception as error:  # whatever the expressions of a template may do wrong
            outcome = {"error": f"{type(error).__name__}: {error}"[:300]}
        else:
            outcome = {"text": text}
            if len(text) > said["characters"]:
                outcome = {
                    "error": f"gives {len(text):,} characters for one row, at most {said['characters']:,} are taken"
                }
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answer(**outcome)


def lines() -> Iterator[str | None]:
    """``None`` first, for the template itself."""
    yield None
    yield from sys.stdin


main()
