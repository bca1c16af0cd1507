"""The files of the page: their headers, their ETags, and no others."""

import re

from served import ask

from sasrec.serving.app import Application


def test_pages_are_served_with_a_strict_policy_and_only_those(app: Application) -> None:
    page = ask(app, "GET", "/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.text)
    again = ask(app, "GET", "/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert ask(app, "HEAD", "/").status_code == 200
