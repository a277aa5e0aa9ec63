"""A task added in the transaction of a user's own row: both are there, or neither.

An order is a row in a table of the shop's own, and is followed by a mail. Were the mail
added after the commit, a crash between the two would lose it; added before, it would be
sent even if the order came to nothing. Here the task is in the transaction of the order.
"""

from tempfile import TemporaryDirectory

import trio
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from trio_gokugen import TaskQuery, WorkRegistry, open_scheduler
from trio_gokugen.sql import SQLRepository, open_sql_repository


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    pencils: Mapped[int]


class OutOfStockError(Exception):
    pass


works = WorkRegistry()


@works.register
async def mail(customer: str, order: int) -> None:
    print(f"mails {customer}: order {order} is on its way")


def place_order(
    engine: Engine, repository: SQLRepository, customer: str, pencils: int
) -> str:
    """Place an order, in a thread: SQLAlchemy's sessions block.

    Returns:
      The id of the task that mails the customer.
    """
    with Session(engine) as session, session.begin():
        order = Order(customer=customer, pencils=pencils)
        session.add(order)
        session.flush()  # now it has an id
        task = repository.add_task_in(
            session, "mail", {"customer": customer, "order": order.id}, after=0
        )
        print(f"{customer} orders {pencils} pencils: a row, and task {task.work_id!r}")
        if pencils > 100:
            raise OutOfStockError
    return task.id


def customers(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(Order.customer)))


async def main() -> None:
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/shop.db"
        engine = create_engine(url)  # the shop's own
        async with open_sql_repository(url) as repository:
            await trio.to_thread.run_sync(Base.metadata.create_all, engine)
            async with open_scheduler(works, repository) as scheduler:

                async def place(customer: str, pencils: int) -> str:
                    return await trio.to_thread.run_sync(
                        place_order, engine, repository, customer, pencils
                    )

                await scheduler.wait(await place("ann", 2))
                try:
                    await place("bob", 1_000)
                except OutOfStockError:
                    print("bob's order is rolled back")
                await scheduler.drain()
            orders = await trio.to_thread.run_sync(customers, engine)
            tasks = await repository.find(TaskQuery())
            print(f"orders of: {', '.join(orders)}")
            print(f"mails to: {', '.join(str(task.param['customer']) for task in tasks)}")
        engine.dispose()


if __name__ == "__main__":
    trio.run(main)
