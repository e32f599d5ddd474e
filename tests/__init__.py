"""The tests: unit (pure), flow (twins), ports (conformance), cases (recorded events), system (real stack)."""
