"""What will run when, and what becomes of a night in which the machine is down."""

from datetime import UTC, datetime

from trio_gokugen import Cron, Interval, Late, Schedule, plan

FRIDAY = datetime(2030, 1, 4, 18, tzinfo=UTC)
SATURDAY = datetime(2030, 1, 5, 12, tzinfo=UTC)
DOWN = datetime(2030, 1, 5, 1, 30, tzinfo=UTC), datetime(2030, 1, 5, 7, 10, tzinfo=UTC)

SCHEDULES = [
    # Late is better than never.
    Schedule(
        id="backup",
        trigger=Cron("0 2 * * *"),
        work_id="back_up",
        created_at=FRIDAY,
    ),
    # Late is no use.
    Schedule(
        id="wake",
        trigger=Cron("0 7 * * *"),
        work_id="ring",
        created_at=FRIDAY,
        late=Late(run="none"),
    ),
    # Each one counts, up to two.
    Schedule(
        id="bill",
        trigger=Interval("3h"),
        work_id="bill",
        created_at=FRIDAY,
        late=Late(run="all", limit=2),
    ),
]

if __name__ == "__main__":
    print(plan(SCHEDULES, FRIDAY, SATURDAY, downtime=[DOWN]))
