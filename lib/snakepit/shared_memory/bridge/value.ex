defmodule Snakepit.SharedMemory.Bridge.Value do
  @moduledoc false
  # Bytes of an argument that are not text, with what describes them. Made by `Bridge.value/2`.

  @enforce_keys [:data, :options]
  defstruct @enforce_keys

  @type t :: %__MODULE__{data: iodata(), options: keyword()}

  # A tensor of Nx is such a value. Nx is no dependency: only what it has is called, by its name. One
  # that cannot be told as bytes stays what it is, for the transport to say so.
  @spec of_tensor(struct()) :: {:ok, t()} | :error
  def of_tensor(%{__struct__: Nx.Tensor} = tensor) do
    with true <- Code.ensure_loaded?(Nx),
         {:ok, dtype} <- Snakepit.SharedMemory.Dtype.to_string(apply(Nx, :type, [tensor])) do
      shape = Nx |> apply(:shape, [tensor]) |> Tuple.to_list()
      options = [dtype: dtype, shape: shape]
      {:ok, %__MODULE__{data: apply(Nx, :to_binary, [tensor]), options: options}}
    else
      _ -> :error
    end
  rescue
    _ -> :error
  end
end
