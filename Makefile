# make demo   the main job in a private host: nothing of this machine is changed
# make test   lint and all tests          make lint   lint alone
# make soak   ten minutes of random edits, sabotage, kills and restarts; SOAK="--seed 7 --firewall nftables" draws them again
# make growth  ten thousand containers made, changed and removed (three minutes)
# make bench  the whole suite, beside a straight C program and other tools (three quarters of an hour)
# make bench-quick  a check of two ratios to the C program (half a minute)

PACKAGES = runc iproute2 iptables nftables busybox-static gcc libc6-dev python3-venv python3-dev \
	util-linux iputils-ping procps
TEST_PACKAGES = radvd tcpdump crun systemd curl vim
BENCH_PACKAGES = containernetworking-plugins netavark iperf3
PYTHON ?= $(shell for p in python3 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV = .venv
BENCH_VENV = build/bench
RUN = $(VENV)/bin/python
WARNINGS = -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
C_FILES = $(wildcard _netlink/*.[ch] benchmarks/*.c tests/c/*.c)

.PHONY: demo test growth lint soak bench bench-quick setup test-setup compiled clean

demo: setup compiled
	$(RUN) -m tests.support.demo

test: test-setup lint compiled
	$(RUN) -m pytest -q -n 4 --dist worksteal tests --ignore tests/kernel/test_growth.py
	$(RUN) -m pytest -q tests/kernel/test_growth.py

growth: test-setup compiled
	RUNCNET_MANY=10000 $(RUN) -m pytest -q tests/kernel/test_growth.py

lint: test-setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(filter-out _netlink/_rtnl.c,$(C_FILES))
	for file in $(filter %.c,$(filter-out _netlink/_rtnl.c,$(C_FILES))); do \
		$(CC) $(WARNINGS) -O2 -fsyntax-only -I_netlink $$file || exit 1; done

soak: test-setup compiled
	$(RUN) -m tests.soak $(SOAK)

bench: setup
	@sh tests/support/packages.sh $(BENCH_PACKAGES)
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -q '.[bench]'
	$(BENCH_VENV)/bin/python -m benchmarks.bench

bench-quick: setup
	$(RUN) -m benchmarks.bench --quick

# Where PYTHONDONTWRITEBYTECODE is set, each process of an editable install would compile all anew.
compiled: setup
	@$(RUN) -m compileall -q reconciler tests

setup: $(VENV)/.runtime
test-setup: setup $(VENV)/.test

$(VENV)/.runtime: pyproject.toml setup.py $(wildcard _netlink/*.c _netlink/*.h _netlink/build.py)
	@sh tests/support/packages.sh $(PACKAGES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip
	$(RUN) -m pip install -q -e .
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	@sh tests/support/packages.sh $(TEST_PACKAGES)
	$(RUN) -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info reconciler/_rtnl* reconciler/runcnet-hook reconciler/hook.pack benchmarks/out
