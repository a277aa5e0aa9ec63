import trio

from trio_gokugen import WorkRegistry, open_scheduler

works = WorkRegistry()


@works.register
async def greet(name: str) -> None:
    print(f"hello {name}")


async def main() -> None:
    async with open_scheduler(works) as scheduler:
        task = await scheduler.add_task("greet", {"name": "trio"}, after=1.5)
        ended = await scheduler.wait(task.id)
        print(f"{ended.work_id} is {ended.state.value}")


trio.run(main)
