"""Section: damaged files."""

import re

from .files import damage
from .target import REFUSES, SAME, shown_command
from .targets import targets


def damaged(lab):
    every = list(targets(lab))
    # Undamaged, each command must work, and its result is what is demanded of `SAME`.
    for target in every:
        for number, command in enumerate(target.commands):
            with lab.case(target.copy) as case:
                lab.must(command, case)
                target.expected[number] = target.made(case)
    files = 20_000 if lab.long else 150
    accepted = refused = 0
    for i in range(files):
        # Every target in turn, and their commands in turn.
        target = every[i % len(every)]
        turn = i // len(every)
        number = turn % len(target.commands)
        command = target.commands[number]
        data, how = damage(lab.rng, target.original().read_bytes())

        def prepare(case):
            target.copy(case)
            (case / target.file).write_bytes(data)

        with lab.case(prepare) as case:
            outcome = lab.run(command, case)
            accepted += outcome.status == 0
            refused += outcome.status in (1, 2)
            wrong = outcome.wrong()
            if not wrong and target.demand == REFUSES:
                if outcome.status == 0:
                    wrong = "accepts it"
                elif target.original().name not in outcome.err:
                    wrong = f"refuses it without naming it: {outcome.first_error()}"
            if not wrong and target.demand == SAME and outcome.status == 0:
                if target.made(case) != target.expected[number]:
                    wrong = "accepts it, and its result is another"
            if wrong:
                what = f"{target.name}, damaged ({how}): `{shown_command(command)}` {wrong}"
                alike = f"{target.name} {shown_command(command)} {re.sub('[0-9]+', '0', wrong)[:60]}"
                lab.found(what, [outcome.line], alike)
    return f"{files} damaged files of {len(every)} sorts: {refused} refused, {accepted} read"
