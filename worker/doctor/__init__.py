"""`promptq doctor`: is everything in place that a queue needs, and what to do where it is not?

findings.py     what a check comes to, and how long it may take
on_settings.py  the environment and the key
on_redis.py     Redis, and what stands in it
on_api.py       the key, asked of xAI
examine.py      all checks, side by side
command.py      the report for a person or a program

One check is one function that returns a Finding. All of it loads without arq, grpc and xai_sdk.
"""
