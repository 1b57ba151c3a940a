from tests.redis_servers import own_redis8, redis8, redis8_session, redis_server

__all__ = ["own_redis8", "redis8", "redis8_session", "redis_server"]
