"""Which services a gRPC front end has on each of its listeners. A service is added by a function of the `Services` and the `RpcContext`
that is named in one of these lists:

    def add_mine(services: Services, context: RpcContext) -> None:
        services.add(mine_pb2_grpc.add_MineServicer_to_server, Mine(context), statuses_of_mine)
"""

from collections.abc import Callable, Sequence

from ringserve.server.rpc.calls import Services
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.open_inference import add_open_inference
from ringserve.server.rpc.torchserve_inference import add_torchserve_inference
from ringserve.server.rpc.torchserve_management import add_torchserve_management

AddService = Callable[[Services, RpcContext], None]

INFERENCE: Sequence[AddService] = (add_torchserve_inference, add_open_inference)
MANAGEMENT: Sequence[AddService] = (add_torchserve_management,)
