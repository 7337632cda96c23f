"""A server of tools for `mcp_tools.py`: sums, and a list that it remembers for as long as it runs."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
noted: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@server.tool()
def note(text: str) -> str:
    """Remember a text; says all that was remembered."""
    noted.append(text)
    return ", ".join(noted)


if __name__ == "__main__":
    server.run()
